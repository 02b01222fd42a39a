"""An Inception-v3-like net: blocks of parallel branches whose outputs are concatenated.

It has the blocks A, B, C, D and E of the paper without the auxiliary classifier, and pads where the paper
does not, so that it takes pictures of 64 x 64.
Source: Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stagewright.models.digits import accuracy, mean_cross_entropy
from stagewright.models.pictures import pictures, random_pictures

example_input = random_pictures
dataset = pictures
loss = mean_cross_entropy
metric = accuracy
Convolution = tuple[int, tuple[int, int], int]
"""Channels, kernel, stride."""


class Branches(nn.Module):
    """The same input through several branches; their outputs side by side."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def _branch(inputs: int, convolutions: Sequence[Convolution]) -> nn.Sequential:
    """Return convolutions in a row, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for width, kernel, stride in convolutions:
        padding = (kernel[0] // 2, kernel[1] // 2)
        layers += [
            nn.Conv2d(inputs, width, kernel, stride=stride, padding=padding, bias=False),
            nn.BatchNorm2d(width, eps=0.001),
            nn.ReLU(inplace=True),
        ]
        inputs = width
    return nn.Sequential(*layers)


def _pooled(inputs: int, width: int) -> nn.Sequential:
    pool = nn.AvgPool2d(3, stride=1, padding=1)
    return nn.Sequential(pool, *_branch(inputs, [(width, (1, 1), 1)]))


def _block_a(inputs: int, pooled: int, n: int) -> tuple[nn.Module, int]:
    one, three, five = (1, 1), (3, 3), (5, 5)
    branches = [
        _branch(inputs, [(64 // n, one, 1)]),
        _branch(inputs, [(48 // n, one, 1), (64 // n, five, 1)]),
        _branch(inputs, [(64 // n, one, 1), (96 // n, three, 1), (96 // n, three, 1)]),
        _pooled(inputs, pooled // n),
    ]
    return Branches(branches), (64 + 64 + 96 + pooled) // n


def _block_b(inputs: int, n: int) -> tuple[nn.Module, int]:
    """Return a block that halves height and width."""
    branches = [
        _branch(inputs, [(384 // n, (3, 3), 2)]),
        _branch(inputs, [(64 // n, (1, 1), 1), (96 // n, (3, 3), 1), (96 // n, (3, 3), 2)]),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    return Branches(branches), (384 + 96) // n + inputs


def _block_c(inputs: int, width: int, n: int) -> tuple[nn.Module, int]:
    wide, high, w, last = (1, 7), (7, 1), width // n, 192 // n
    branches = [
        _branch(inputs, [(last, (1, 1), 1)]),
        _branch(inputs, [(w, (1, 1), 1), (w, wide, 1), (last, high, 1)]),
        _branch(
            inputs, [(w, (1, 1), 1), (w, high, 1), (w, wide, 1), (w, high, 1), (last, wide, 1)]
        ),
        _pooled(inputs, last),
    ]
    return Branches(branches), 4 * last


def _block_d(inputs: int, n: int) -> tuple[nn.Module, int]:
    """Return a block that halves height and width."""
    w = 192 // n
    branches = [
        _branch(inputs, [(w, (1, 1), 1), (320 // n, (3, 3), 2)]),
        _branch(inputs, [(w, (1, 1), 1), (w, (1, 7), 1), (w, (7, 1), 1), (w, (3, 3), 2)]),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    return Branches(branches), 320 // n + w + inputs


def _block_e(inputs: int, n: int) -> tuple[nn.Module, int]:
    """Return a block whose middle branches fork again."""
    w = 384 // n

    def forked(before: Sequence[Convolution]) -> nn.Sequential:
        fork = Branches([_branch(w, [(w, (1, 3), 1)]), _branch(w, [(w, (3, 1), 1)])])
        return nn.Sequential(*_branch(inputs, before), fork)

    branches = [
        _branch(inputs, [(320 // n, (1, 1), 1)]),
        forked([(w, (1, 1), 1)]),
        forked([(448 // n, (1, 1), 1), (w, (3, 3), 1)]),
        _pooled(inputs, 192 // n),
    ]
    return Branches(branches), 320 // n + 4 * w + 192 // n


class Inception(nn.Module):
    """(batch, 3, height, width) -> (batch, classes)."""

    def __init__(self, num_classes: int = 1000, narrower: int = 1, *, short: bool = False) -> None:
        """narrower divides all widths; a short one has one block of each kind."""
        super().__init__()
        n = narrower
        self.stem = nn.Sequential(
            *_branch(3, [(32 // n, (3, 3), 2), (32 // n, (3, 3), 1), (64 // n, (3, 3), 1)]),
            nn.MaxPool2d(3, stride=2, padding=1),
            *_branch(64 // n, [(80 // n, (1, 1), 1), (192 // n, (3, 3), 1)]),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        width = 192 // n
        blocks: list[nn.Module] = []
        for pooled in (32,) if short else (32, 64, 64):
            block, width = _block_a(width, pooled, n)
            blocks.append(block)
        block, width = _block_b(width, n)
        blocks.append(block)
        for inner in (128,) if short else (128, 160, 160, 192):
            block, width = _block_c(width, inner, n)
            blocks.append(block)
        block, width = _block_d(width, n)
        blocks.append(block)
        for _ in range(1 if short else 2):
            block, width = _block_e(width, n)
            blocks.append(block)
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout()
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.pool(self.blocks(self.stem(x))), 1)
        y: Tensor = self.fc(self.dropout(x))
        return y


def build() -> nn.Module:
    return Inception()


def build_small() -> nn.Module:
    """Return one with a block of each kind, 16 times narrower, for ten classes."""
    return Inception(num_classes=10, narrower=16, short=True)
