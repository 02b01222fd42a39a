"""A residual net on voxels: points (batch, points, 3) -> (batch, 10).

Task: `stagewright.models.minkowski.resnet`. Source: He et al., "Deep Residual Learning", CVPR 2016, with the
depths of ResNet-18.
"""

from typing import Any

from torch import Tensor, nn

from stagewright.models.digits import accuracy
from stagewright.models.minkowski.shapes import SHAPES, ShapeClouds, clouds
from stagewright.models.minkowski.vgg import loss
from stagewright.models.minkowski.voxels import DIMENSION, ME, Voxelize

NUM_CELLS = 32
DEPTHS = (2, 2, 2, 2)

__all__ = ["build", "dataset", "example_input", "loss", "metric"]

example_input = clouds
dataset = ShapeClouds
metric = accuracy


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ME.MinkowskiConvolution(
            inputs, outputs, kernel_size=3, stride=stride, dimension=DIMENSION
        )
        self.norm1 = ME.MinkowskiBatchNorm(outputs)
        self.conv2 = ME.MinkowskiConvolution(outputs, outputs, kernel_size=3, dimension=DIMENSION)
        self.norm2 = ME.MinkowskiBatchNorm(outputs)
        self.relu = ME.MinkowskiReLU()
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                ME.MinkowskiConvolution(
                    inputs, outputs, kernel_size=1, stride=stride, dimension=DIMENSION
                ),
                ME.MinkowskiBatchNorm(outputs),
            )

    def forward(self, x: Any) -> Any:
        y = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class SparseResNet(nn.Module):
    """A convolution, four groups of blocks, the mean over all voxels, a linear layer."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.voxelize = Voxelize(NUM_CELLS)
        self.stem = nn.Sequential(
            ME.MinkowskiConvolution(1, width, kernel_size=3, dimension=DIMENSION),
            ME.MinkowskiBatchNorm(width),
            ME.MinkowskiReLU(),
        )
        blocks: list[nn.Module] = []
        channels = width
        for group, depth in enumerate(DEPTHS):
            for i in range(depth):
                outputs = width * 2**group
                blocks.append(Block(channels, outputs, stride=2 if i == 0 and group > 0 else 1))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = ME.MinkowskiGlobalAvgPooling()
        self.head = ME.MinkowskiLinear(channels, num_classes)

    def forward(self, points: Tensor) -> Tensor:
        x = self.pool(self.blocks(self.stem(self.voxelize(points))))
        features: Tensor = self.head(x).F
        return features


def build() -> nn.Module:
    return SparseResNet(num_classes=len(SHAPES), width=16)
