"""A GPT whose feed-forward nets are mixtures of experts: each token goes through the best few of them.

Every expert computes all tokens, and those that are not its own count nothing: no shape depends on the data.
Source: Shazeer et al., "Outrageously large neural networks", ICLR 2017 (without noise and balancing loss).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from stagewright.models import gpt

example_input = gpt.example_input
dataset = gpt.dataset
loss = gpt.loss
metric = gpt.metric


class Expert(nn.Module):
    """(..., width) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.gelu = nn.GELU()
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.gelu(self.up(x)))
        return y


class Mixture(nn.Module):
    """(batch, time, width) -> the same, each token by its num_chosen best experts."""

    def __init__(self, width: int, num_experts: int, num_chosen: int) -> None:
        super().__init__()
        self.num_chosen = num_chosen
        self.router = nn.Linear(width, num_experts, bias=False)
        self.experts = nn.ModuleList(Expert(width) for _ in range(num_experts))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x)
        best = scores.topk(self.num_chosen, dim=-1)
        weights = torch.zeros_like(scores).scatter(-1, best.indices, best.values.softmax(-1))
        parts = [expert(x) * weights[..., i].unsqueeze(-1) for i, expert in enumerate(self.experts)]
        return torch.stack(parts).sum(0)


class Block(nn.Module):
    """Attention and a mixture, each around a skip."""

    def __init__(self, width: int, num_heads: int, num_experts: int, num_chosen: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = gpt.Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mixture = Mixture(width, num_experts, num_chosen)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        x = x + self.mixture(self.norm2(x))
        return x


class ExpertGpt(nn.Module):
    """Tokens (batch, time) -> scores of the next token (batch, time, tokens)."""

    def __init__(
        self, width: int, num_blocks: int, num_heads: int, num_experts: int, num_chosen: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(gpt.NUM_TOKENS, width)
        self.position = nn.Parameter(torch.zeros(gpt.LENGTH, width))
        self.blocks = nn.ModuleList(
            Block(width, num_heads, num_experts, num_chosen) for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position[: tokens.size(1)]
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.embedding.weight)


def build() -> nn.Module:
    return ExpertGpt(width=128, num_blocks=4, num_heads=4, num_experts=8, num_chosen=2)


def build_large() -> nn.Module:
    """Return six blocks of GPT-2 small's width: 241 million parameters."""
    return ExpertGpt(width=768, num_blocks=6, num_heads=12, num_experts=8, num_chosen=2)


def build_small() -> nn.Module:
    return ExpertGpt(width=16, num_blocks=2, num_heads=2, num_experts=3, num_chosen=2)
