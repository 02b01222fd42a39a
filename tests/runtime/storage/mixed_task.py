"""A task of all that is awkward: two inputs, integers, skips, frozen, tied, unused and aliased parts."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        changed: torch.Tensor = self.norm(self.linear(x).relu())
        return x + changed


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.number = nn.Linear(4, 16)
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.blocks = nn.Sequential(*(Block(16) for _ in range(3)))
        self.other_name = self.blocks[1].norm
        self.unused = nn.BatchNorm1d(3)
        self.register_buffer("scale", torch.full((16,), 0.5))
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embedding.weight
        self.second = nn.Linear(16, 1)
        nn.init.normal_(self.unused.weight)

    def forward(self, words: torch.Tensor, numbers: torch.Tensor) -> Any:
        number = self.number(numbers)
        first = self.embedding(words).mean(1) + self.frozen(number)
        last = self.blocks(first) * self.scale
        return self.head(last + first), self.second(last + number)


def build() -> nn.Module:
    return Mixed()


def example_input(batch_size: int) -> dict[str, torch.Tensor]:
    return {
        "numbers": torch.randn(batch_size, 4),
        "words": torch.randint(0, 20, (batch_size, 6)),
    }


def loss(output: Any, target: torch.Tensor) -> torch.Tensor:
    words, numbers = output
    squares: torch.Tensor = numbers.square().mean()
    return F.cross_entropy(words, target) + squares


def dataset(split: str) -> list[Any]:
    generator = torch.Generator().manual_seed(len(split))
    words = torch.randint(0, 20, (32, 6), generator=generator)
    numbers = torch.randn(32, 4, generator=generator)
    return [({"words": w, "numbers": n}, w[0]) for w, n in zip(words, numbers, strict=True)]
