"""A task whose positions do not see one another, so that slices of its samples are exact."""

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

NUM_TOKENS, WIDTH, NUM_CLASSES = 12, 6, 5


def build() -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, 16),
        nn.Tanh(),
        nn.LayerNorm(16),
        nn.Linear(16, 16),
        nn.Tanh(),
        nn.Linear(16, NUM_CLASSES),
    )


def build_with_dropout() -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, 16), nn.Dropout(0.3), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 5)
    )


def example_input(batch_size: int) -> Tensor:
    return torch.randn(batch_size, NUM_TOKENS, WIDTH)


def dataset(split: str) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(96, NUM_TOKENS, WIDTH, generator=generator)
    targets = torch.randint(NUM_CLASSES, (96, NUM_TOKENS), generator=generator)
    return TensorDataset(inputs, targets)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten())
