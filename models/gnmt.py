"""A GNMT-like translator: stacked LSTMs, the first in both directions, residual ones above, and attention.

The task that needs no download: to write a text of bytes backwards. The decoder is given the bytes before.
Source: Wu et al., "Google's neural machine translation system", 2016.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from stagewright.models.gpt import Bytes
from stagewright.models.gpt import dataset as windows

NUM_TOKENS = 257
"""Bytes, and the token before the first one."""
START = 256
LENGTH = 24
"""Tokens of a sample."""


class Encoder(nn.Module):
    """Tokens (batch, time) -> states (batch, time, width)."""

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_TOKENS, width)
        self.both_ways = nn.LSTM(width, width // 2, batch_first=True, bidirectional=True)
        self.layers = nn.ModuleList(
            nn.LSTM(width, width, batch_first=True) for _ in range(num_layers - 1)
        )
        self.dropouts = nn.ModuleList(nn.Dropout(0.2) for _ in range(num_layers - 1))

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.both_ways(self.embedding(tokens))[0]
        for layer, dropout in zip(self.layers, self.dropouts, strict=True):
            y, _ = layer(dropout(x))
            x = x + y
        return x


class Decoder(nn.Module):
    """Tokens before (batch, time) and the encoder's states -> scores (batch, time, tokens)."""

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_TOKENS, width)
        self.first = nn.LSTM(width, width, batch_first=True)
        self.attention = nn.MultiheadAttention(width, 1, batch_first=True)
        self.layers = nn.ModuleList(
            nn.LSTM(2 * width, width, batch_first=True) for _ in range(num_layers - 1)
        )
        self.head = nn.Linear(width, NUM_TOKENS)

    def forward(self, tokens: Tensor, states: Tensor) -> Tensor:
        x, _ = self.first(self.embedding(tokens))
        context, _ = self.attention(x, states, states, need_weights=False)
        for layer in self.layers:
            y, _ = layer(torch.cat([x, context], -1))
            x = x + y
        scores: Tensor = self.head(x)
        return scores


class Gnmt(nn.Module):
    """Source and the target's tokens before (batch, time) -> scores of the target (batch, time, tokens)."""

    def __init__(self, width: int = 1024, num_layers: int = 4) -> None:
        super().__init__()
        self.encoder = Encoder(width, num_layers)
        self.decoder = Decoder(width, num_layers)

    def forward(self, source: Tensor, before: Tensor) -> Tensor:
        scores: Tensor = self.decoder(before, self.encoder(source))
        return scores


class Backwards(Dataset[tuple[tuple[Tensor, Tensor], Tensor]]):
    """Windows of a text: (the text, the target's tokens before each of its own), and the target."""

    def __init__(self, text: Bytes) -> None:
        self._text = text

    def __len__(self) -> int:
        return len(self._text)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        source = self._text[index][0][:LENGTH]
        target = source.flip(0)
        before = torch.cat([torch.tensor([START]), target[:-1]])
        return (source, before), target


def build() -> nn.Module:
    return Gnmt()


def build_deep() -> nn.Module:
    """Return one with eight layers on either side, as in the paper."""
    return Gnmt(num_layers=8)


def build_small() -> nn.Module:
    return Gnmt(width=16, num_layers=2)


def example_input(batch_size: int) -> tuple[Tensor, Tensor]:
    """Return two times (batch_size, LENGTH) random tokens, the same for every call."""
    generator = torch.Generator().manual_seed(0)
    source, before = torch.randint(NUM_TOKENS, (2, batch_size, LENGTH), generator=generator)
    return source, before


def dataset(split: str) -> Backwards:
    """Return windows of the help text's beginning ('train') or end ('test')."""
    return Backwards(windows(split))


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy per token, in nats."""
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


def metric(output: Tensor, target: Tensor) -> float:
    """Return the share of tokens that are right."""
    return (output.argmax(dim=-1) == target).float().mean().item()
