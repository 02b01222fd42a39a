"""VGG16 with BatchNorm on voxels, as SparsePipe's minkvgg: points (batch, points, 3) -> (batch, classes).

Tasks: `stagewright.models.minkowski.vgg` (63 million parameters, 40 classes: those of ModelNet40, of which
the generated shapes use the first ten) and `stagewright.models.minkowski.vgg:small` (ten classes, an eighth
of the width). Source: Simonyan and Zisserman, ICLR 2015, configuration D; layers as in SparsePipe's profile.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from stagewright.models.digits import accuracy
from stagewright.models.minkowski.shapes import SHAPES, ShapeClouds, clouds
from stagewright.models.minkowski.voxels import DIMENSION, ME, Voxelize

NUM_CELLS = 32
MAX_POOLING = "M"
CONFIGURATION = (1, 1, "M", 2, 2, "M", 4, 4, 4, "M", 8, 8, 8, "M", 8, 8, 8, "M")
"""Channels of each convolution in units of the width, or a max pooling."""

example_input = clouds
dataset = ShapeClouds
metric = accuracy


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross entropy over the samples, however many voxels each has."""
    return functional.cross_entropy(output, target)


class SparseVgg(nn.Module):
    """Thirteen convolutions, a max over all voxels, three linear layers."""

    def __init__(
        self,
        num_classes: int,
        width: int,
        hidden: int,
        configuration: Sequence[int | str] = CONFIGURATION,
    ) -> None:
        super().__init__()
        self.voxelize = Voxelize(NUM_CELLS)
        layers: list[nn.Module] = []
        channels = 1
        for entry in configuration:
            if isinstance(entry, str):
                layers.append(ME.MinkowskiMaxPooling(kernel_size=2, stride=2, dimension=DIMENSION))
                continue
            layers += [
                ME.MinkowskiConvolution(
                    channels, entry * width, kernel_size=3, dimension=DIMENSION
                ),
                ME.MinkowskiBatchNorm(entry * width),
                ME.MinkowskiReLU(),
            ]
            channels = entry * width
        self.features = nn.Sequential(*layers)
        self.pool = ME.MinkowskiGlobalMaxPooling()
        self.classifier = nn.Sequential(
            ME.MinkowskiLinear(channels, hidden),
            ME.MinkowskiReLU(),
            ME.MinkowskiDropout(),
            ME.MinkowskiLinear(hidden, hidden),
            ME.MinkowskiReLU(),
            ME.MinkowskiDropout(),
            ME.MinkowskiLinear(hidden, num_classes),
        )

    def forward(self, points: Tensor) -> Tensor:
        x = self.pool(self.features(self.voxelize(points)))
        features: Tensor = self.classifier(x).F
        return features


def build() -> nn.Module:
    return SparseVgg(num_classes=40, width=64, hidden=4096)


def small() -> nn.Module:
    return SparseVgg(num_classes=len(SHAPES), width=8, hidden=64)
