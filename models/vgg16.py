"""VGG16 for ImageNet, with torchvision's state-dict names; its data are enlarged digits.

Source: Simonyan and Zisserman, "Very deep convolutional networks", ICLR 2015, configuration D.
"""

import torch
from torch import Tensor, nn

from stagewright.models.digits import accuracy, mean_cross_entropy
from stagewright.models.pictures import full_pictures, random_full_pictures

example_input = random_full_pictures
dataset = full_pictures
loss = mean_cross_entropy
metric = accuracy
WIDTHS: tuple[int | None, ...] = (
    64, 64, None, 128, 128, None, 256, 256, 256, None, 512, 512, 512, None, 512, 512, 512, None,
)  # fmt: skip
"""Channels of the convolutions; None is a pooling."""


class Vgg16(nn.Module):
    """(batch, 3, 224, 224) -> (batch, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width in WIDTHS:
            if width is None:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(4096, 1000),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return y


def build() -> nn.Module:
    return Vgg16()
