"""A convolutional net for handwritten digits, with BatchNorm: the demo's model."""

import torch
from torch import Tensor, nn

from stagewright.models.digits import accuracy, digits, images, mean_cross_entropy

example_input = images
dataset = digits
loss = mean_cross_entropy
metric = accuracy


class DigitsCnn(nn.Module):
    """Two blocks of two convolutions, then two linear layers: (batch, 1, 8, 8) -> (batch, 10)."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(1, width),
            *_convolution(width, width),
            nn.MaxPool2d(2),
            *_convolution(width, 2 * width),
            *_convolution(2 * width, 2 * width),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(2 * width * 4, 2 * width),
            nn.ReLU(inplace=True),
            nn.Linear(2 * width, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return y


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


def build() -> nn.Module:
    return DigitsCnn()
