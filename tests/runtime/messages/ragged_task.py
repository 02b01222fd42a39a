"""A task whose borders carry what few do: rows chosen by the data, COO, booleans, None, numbers."""

import torch
from torch import Tensor, nn

from stagewright.models.digits import digits, images, mean_cross_entropy

example_input = images
dataset = digits
loss = mean_cross_entropy

PIXEL = 12
"""Bright in about half of the images: sometimes no image of a micro-batch is chosen, sometimes every one."""


class Pair(nn.Module):
    """Returns a pair with None in it, as attention layers do."""

    stagewright_layer = True

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.linear(x), None


class Ragged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 16)
        self.second = nn.Linear(16, 16)
        self.pair = Pair()
        self.third = nn.Linear(16, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        hidden = torch.tanh(self.first(flat))
        bright = flat[:, PIXEL] > 0
        # Similar images: a sparse matrix whose entries are trained, (B, B).
        similar = torch.relu(hidden @ hidden.transpose(0, 1) - 1).to_sparse()
        rows = torch.tanh(self.second(hidden[bright]))
        rows = self.pair(rows)[0]
        places = bright.nonzero().squeeze(1)
        count = rows.size(0)
        rows = torch.tanh(self.third(rows)) / (count + 1)
        mixed = similar @ hidden
        placed = torch.zeros_like(hidden).index_add(0, places, rows)
        result: Tensor = self.head(mixed + placed + hidden * bright.unsqueeze(1))
        return result


def build() -> nn.Module:
    return Ragged()
