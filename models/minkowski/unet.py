"""A U-Net on voxels that labels every point: points (batch, points, 3) -> (batch, points, 10).

Task: `stagewright.models.minkowski.unet`. Its skips join tensors of one coordinate map from far apart in the
net, and its transposed convolutions need the coordinates of the level that they return to. Source: Choy et
al., "4D Spatio-Temporal ConvNets", CVPR 2019, with three levels.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from stagewright.models.minkowski.shapes import SHAPES, SceneClouds, scenes
from stagewright.models.minkowski.voxels import DIMENSION, ME, AtPoints, Voxelize

NUM_CELLS = 32

example_input = scenes
dataset = SceneClouds


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross entropy over the points of (batch, points, classes).

    Every sample has as many points, so every sample weighs the same, however many voxels it fills.
    """
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


def metric(output: Tensor, target: Tensor) -> float:
    """Return the share of points whose highest score is at their label."""
    return (output.argmax(dim=2) == target).float().mean().item()


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    kernel_size = 3 if stride == 1 else 2
    return nn.Sequential(
        ME.MinkowskiConvolution(
            inputs, outputs, kernel_size=kernel_size, stride=stride, dimension=DIMENSION
        ),
        ME.MinkowskiBatchNorm(outputs),
        ME.MinkowskiReLU(),
    )


def _up(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        ME.MinkowskiConvolutionTranspose(
            inputs, outputs, kernel_size=2, stride=2, dimension=DIMENSION
        ),
        ME.MinkowskiBatchNorm(outputs),
        ME.MinkowskiReLU(),
    )


class SparseUNet(nn.Module):
    """Two levels down, two up again, each joined with its level's features on the way down."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.voxelize = Voxelize(NUM_CELLS)
        self.level0 = _convolution(1, width)
        self.down1 = _convolution(width, 2 * width, stride=2)
        self.level1 = _convolution(2 * width, 2 * width)
        self.down2 = _convolution(2 * width, 4 * width, stride=2)
        self.level2 = _convolution(4 * width, 4 * width)
        self.up1 = _up(4 * width, 2 * width)
        self.joined1 = _convolution(4 * width, 2 * width)
        self.up0 = _up(2 * width, width)
        self.joined0 = _convolution(2 * width, width)
        self.head = ME.MinkowskiConvolution(
            width, num_classes, kernel_size=1, bias=True, dimension=DIMENSION
        )
        self.at_points = AtPoints(NUM_CELLS)

    def forward(self, points: Tensor) -> Tensor:
        level0: Any = self.level0(self.voxelize(points))
        level1 = self.level1(self.down1(level0))
        level2 = self.level2(self.down2(level1))
        joined1 = self.joined1(ME.cat(self.up1(level2), level1))
        joined0 = self.joined0(ME.cat(self.up0(joined1), level0))
        logits: Tensor = self.at_points(self.head(joined0), points)
        return logits


def build() -> nn.Module:
    return SparseUNet(num_classes=len(SHAPES), width=16)
