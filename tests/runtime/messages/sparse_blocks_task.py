"""A sparse task of four blocks of a user's class, each one layer: stages take them from the whole model."""

from typing import Any

from torch import Tensor, nn

from stagewright.models.minkowski import vgg
from stagewright.models.minkowski.voxels import DIMENSION, ME, Voxelize

example_input, dataset, loss = vgg.example_input, vgg.dataset, vgg.loss
WIDTH = 32


class Block(nn.Module):
    """Two convolutions that share their weights, and a third."""

    stagewright_layer = True

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            ME.MinkowskiConvolution(WIDTH, WIDTH, kernel_size=3, dimension=DIMENSION, bias=True)
            for _ in range(3)
        )
        self.second.kernel = self.first.kernel

    def forward(self, x: Any) -> Any:
        return self.third(self.second(self.first(x)))


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.voxelize = Voxelize(8)
        self.widen = ME.MinkowskiConvolution(1, WIDTH, kernel_size=1, dimension=DIMENSION)
        self.blocks = nn.Sequential(*(Block() for _ in range(4)))
        self.pool = ME.MinkowskiGlobalAvgPooling()
        self.head = ME.MinkowskiLinear(WIDTH, 10)

    def forward(self, points: Tensor) -> Tensor:
        features: Tensor = self.head(self.pool(self.blocks(self.widen(self.voxelize(points))))).F
        return features


def build() -> nn.Module:
    return Blocks()
