"""Residual nets with torchvision's names: a small one for handwritten digits, and the blocks of ResNet50.

Source: He et al., "Deep residual learning for image recognition", CVPR 2016; the stride of a bottleneck is
in its 3x3 convolution, as in torchvision.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stagewright.models.digits import accuracy, digits, images, mean_cross_entropy

example_input = images
dataset = digits
loss = mean_cross_entropy
metric = accuracy


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a skip."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        skip = x if self.downsample is None else self.downsample(x)
        y = self.relu(y + skip)
        return y


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution and a skip; the output is four times as wide."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        skip = x if self.downsample is None else self.downsample(x)
        y = self.relu(y + skip)
        return y


Block = type[BasicBlock] | type[Bottleneck]


class ResNet(nn.Module):
    """A stem, groups of residual blocks (layer1, layer2, ...), average pooling, one linear layer."""

    def __init__(
        self, stem: Sequence[tuple[str, nn.Module]], block: Block, widths: Sequence[int],
        blocks: Sequence[int], stem_width: int, num_classes: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stem_names = [name for name, _ in stem]
        for name, module in stem:
            self.add_module(name, module)
        self.group_names = [f"layer{i + 1}" for i in range(len(widths))]
        inputs = stem_width
        for i, (name, width, count) in enumerate(
            zip(self.group_names, widths, blocks, strict=True)
        ):
            self.add_module(name, group(block, inputs, width, count, stride=1 if i == 0 else 2))
            inputs = width * block.expansion
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for name in [*self.stem_names, *self.group_names]:
            x = self.get_submodule(name)(x)
        x = self.fc(torch.flatten(self.avgpool(x), 1))
        return x


def group(block: Block, inputs: int, width: int, count: int, stride: int) -> nn.Sequential:
    """Return the residual blocks of one resolution."""
    outputs = width * block.expansion
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
        )
    blocks = [block(inputs, width, stride, downsample)]
    blocks += [block(outputs, width, 1, None) for _ in range(count - 1)]
    return nn.Sequential(*blocks)


def build() -> nn.Module:
    """Return a net of six basic blocks for (batch, 1, 8, 8)."""
    stem = [
        ("conv1", nn.Conv2d(1, 32, 3, padding=1, bias=False)),
        ("bn1", nn.BatchNorm2d(32)),
        ("relu", nn.ReLU(inplace=True)),
    ]
    return ResNet(stem, BasicBlock, (32, 64, 128), (2, 2, 2), stem_width=32, num_classes=10)


def build_resnet50() -> nn.Module:
    """Return ResNet50 for (batch, 3, 224, 224); see stagewright.models.resnet50 for its task."""
    stem = [
        ("conv1", nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)),
        ("bn1", nn.BatchNorm2d(64)),
        ("relu", nn.ReLU(inplace=True)),
        ("maxpool", nn.MaxPool2d(3, stride=2, padding=1)),
    ]
    widths, blocks = (64, 128, 256, 512), (3, 4, 6, 3)
    return ResNet(stem, Bottleneck, widths, blocks, stem_width=64, num_classes=1000)
