"""AlexNet with torchvision's state-dict names.

Source: Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014.
"""

import torch
from torch import Tensor, nn

from stagewright.models.digits import accuracy, mean_cross_entropy
from stagewright.models.pictures import pictures, random_pictures

example_input = random_pictures
dataset = pictures
loss = mean_cross_entropy
metric = accuracy


class AlexNet(nn.Module):
    """(batch, 3, height, width) -> (batch, classes); pictures of 63 x 63 or more."""

    def __init__(self, num_classes: int = 1000, narrower: int = 1) -> None:
        """narrower: divides all widths."""
        super().__init__()
        widths = [width // narrower for width in (64, 192, 384, 256, 256)]
        hidden = 4096 // narrower
        self.features = nn.Sequential(
            nn.Conv2d(3, widths[0], 11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
            nn.Conv2d(widths[0], widths[1], 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
            nn.Conv2d(widths[1], widths[2], 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(widths[2], widths[3], 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(widths[3], widths[4], 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(widths[4] * 6 * 6, hidden), nn.ReLU(inplace=True),
            nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(inplace=True),
            nn.Linear(hidden, num_classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return y


def build() -> nn.Module:
    return AlexNet()


def build_small() -> nn.Module:
    """Return one 16 times narrower, for ten classes."""
    return AlexNet(num_classes=10, narrower=16)
