"""A U-Net on dense pictures: which pixels belong to the digit; its skips join the ends of the net.

Source: Ronneberger et al., "U-Net: convolutional networks for biomedical image segmentation", MICCAI 2015.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from stagewright.models.digits import digits

SIZE = 32
THRESHOLD = 0.0
"""A pixel brighter than this belongs to the digit."""
NOISE = 0.5
"""Standard deviation of what is added to the pictures."""


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm and ReLU."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(x)))
        y: Tensor = self.relu(self.norm2(self.conv2(x)))
        return y


class UNet(nn.Module):
    """(batch, 1, height, width) -> (batch, 2, height, width): scores of background and digit."""

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256, 512, 1024)) -> None:
        """Height and width must be multiples of 2 ** (len(widths) - 1)."""
        super().__init__()
        self.down = nn.ModuleList(Block(a, b) for a, b in pairwise((1, *widths)))
        self.pool = nn.MaxPool2d(2)
        upward = list(pairwise(widths[::-1]))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in upward)
        self.up = nn.ModuleList(Block(2 * b, b) for _, b in upward)
        self.head = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down[:-1]:
            x = block(x)
            skips.append(x)
            x = self.pool(x)
        x = self.down[-1](x)
        for grow, block, skip in zip(self.grow, self.up, skips[::-1], strict=True):
            x = block(torch.cat([skip, grow(x)], 1))
        y: Tensor = self.head(x)
        return y


def build() -> nn.Module:
    return UNet()


def build_small() -> nn.Module:
    return UNet((4, 8, 16))


def example_input(batch_size: int) -> Tensor:
    """Return (batch_size, 1, SIZE, SIZE) random pictures, the same for every call."""
    return torch.rand(batch_size, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def dataset(split: str) -> TensorDataset:
    """Return noisy enlarged digits (1, SIZE, SIZE) and which of their pixels are the digit's.

    Raises:
        InputError: scikit-learn is missing, or there is no such split.
    """
    small, _ = digits(split).tensors
    clean = functional.interpolate(small, size=(SIZE, SIZE), mode="bilinear")
    generator = torch.Generator().manual_seed(len(split))
    noisy = clean + NOISE * torch.randn(clean.shape, generator=generator)
    return TensorDataset(noisy, (clean[:, 0] > THRESHOLD).long())


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy per pixel."""
    return functional.cross_entropy(output, target)


def metric(output: Tensor, target: Tensor) -> float:
    """Return the share of pixels that are right."""
    return (output.argmax(dim=1) == target).float().mean().item()
