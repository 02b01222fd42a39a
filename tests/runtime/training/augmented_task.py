"""A task whose dataset draws random numbers for every item and notes which process opened it."""

import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

READERS = Path(os.environ.get("STAGEWRIGHT_TEST_READERS", os.devnull))
"""A file that gets the process id of whoever opens a dataset."""


class Noisy(Dataset[tuple[Tensor, int]]):
    """Vectors with noise: an augmentation."""

    def __init__(self, size: int) -> None:
        self._vectors = torch.randn(size, 8, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self._vectors)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._vectors[index] + torch.randn(8), index % 3


class Broken(Noisy):
    """Its first item is a pair, its second none, and its third never comes."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 2:
            time.sleep(1000)
        pair = super().__getitem__(index)
        return pair if index == 0 else pair[0]  # type: ignore[return-value]


SPLITS = {"train": (Noisy, 40), "test": (Noisy, 10), "broken": (Broken, 3)}


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 3))


def example_input(batch_size: int) -> Tensor:
    return torch.randn(batch_size, 8)


def dataset(split: str) -> Noisy:
    with READERS.open("a") as file:
        file.write(f"{os.getpid()}\n")
    kind, size = SPLITS[split]
    return kind(size)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)
