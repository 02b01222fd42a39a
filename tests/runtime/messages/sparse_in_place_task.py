"""A sparse task with layers that write in place, and with a sample whose points fill a single voxel."""

from typing import Any

from torch import Tensor, nn

from stagewright.models.minkowski import vgg
from stagewright.models.minkowski.shapes import ShapeClouds
from stagewright.models.minkowski.voxels import DIMENSION, ME, Voxelize

example_input = vgg.example_input
loss = vgg.loss


class WithASingleVoxel(ShapeClouds):
    """The generated shapes; the points of the second are all one."""

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        points, label = super().__getitem__(index)
        return (points[:1].expand_as(points) if index == 1 else points), label


dataset = WithASingleVoxel


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.voxelize = Voxelize(8)
        self.first = ME.MinkowskiConvolution(1, 4, kernel_size=3, dimension=DIMENSION)
        self.relu = ME.MinkowskiReLU(inplace=True)
        self.second = ME.MinkowskiConvolution(4, 4, kernel_size=3, dimension=DIMENSION)
        self.norm = ME.MinkowskiBatchNorm(4)
        self.last = ME.MinkowskiReLU(inplace=True)
        self.pool = ME.MinkowskiGlobalAvgPooling()
        self.head = ME.MinkowskiLinear(4, 10)

    def forward(self, points: Tensor) -> Tensor:
        x = self.relu(self.first(self.voxelize(points)))
        x = self.last(self.norm(self.second(x)))
        features: Tensor = self.head(self.pool(x)).F
        return features


def build() -> nn.Module:
    return InPlace()
