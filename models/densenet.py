"""DenseNet with torchvision's state-dict names: every layer takes the outputs of all before it in its block.

Source: Huang et al., "Densely connected convolutional networks", CVPR 2017.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stagewright.models.digits import accuracy, mean_cross_entropy
from stagewright.models.pictures import pictures, random_pictures

example_input = random_pictures
dataset = pictures
loss = mean_cross_entropy
metric = accuracy
BOTTLENECK = 4
"""A layer's 1x1 convolution is so many times wider than its output."""


class DenseLayer(nn.Module):
    """The outputs of the layers before -> its own, (batch, growth, height, width)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inputs, BOTTLENECK * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(BOTTLENECK * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(BOTTLENECK * growth, growth, 3, padding=1, bias=False)

    def forward(self, before: list[Tensor]) -> Tensor:
        x = self.conv1(self.relu1(self.norm1(torch.cat(before, 1))))
        y: Tensor = self.conv2(self.relu2(self.norm2(x)))
        return y


class DenseBlock(nn.Module):
    """(batch, inputs, ...) -> (batch, inputs + num_layers * growth, ...)."""

    def __init__(self, inputs: int, growth: int, num_layers: int) -> None:
        super().__init__()
        for i in range(num_layers):
            self.add_module(f"denselayer{i + 1}", DenseLayer(inputs + i * growth, growth))

    def forward(self, x: Tensor) -> Tensor:
        made = [x]
        for layer in self.children():
            made.append(layer(made))
        return torch.cat(made, 1)


class DenseNet(nn.Module):
    """(batch, 3, height, width) -> (batch, classes)."""

    def __init__(
        self, growth: int, blocks: Sequence[int], stem: int, num_classes: int = 1000
    ) -> None:
        super().__init__()
        features: list[tuple[str, nn.Module]] = [
            ("conv0", nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)),
            ("norm0", nn.BatchNorm2d(stem)),
            ("relu0", nn.ReLU(inplace=True)),
            ("pool0", nn.MaxPool2d(3, stride=2, padding=1)),
        ]
        width = stem
        for number, num_layers in enumerate(blocks, 1):
            features.append((f"denseblock{number}", DenseBlock(width, growth, num_layers)))
            width += num_layers * growth
            if number < len(blocks):
                features.append((f"transition{number}", _transition(width)))
                width //= 2
        features.append(("norm5", nn.BatchNorm2d(width)))
        self.features = nn.Sequential(OrderedDict(features))
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(torch.flatten(self.pool(self.relu(self.features(x))), 1))
        return y


def _transition(width: int) -> nn.Module:
    """Return what halves height, width and channels between two blocks."""
    parts = OrderedDict[str, nn.Module](
        norm=nn.BatchNorm2d(width),
        relu=nn.ReLU(inplace=True),
        conv=nn.Conv2d(width, width // 2, 1, bias=False),
        pool=nn.AvgPool2d(2, stride=2),
    )
    return nn.Sequential(parts)


def build() -> nn.Module:
    """Return DenseNet121."""
    return DenseNet(32, (6, 12, 24, 16), 64)


def build_small() -> nn.Module:
    """Return one with three short blocks, for ten classes."""
    return DenseNet(4, (2, 3, 2), 8, num_classes=10)
