"""A small causal GPT on bytes: tied embedding and head, the positions a bare parameter, dropout.

Its text is the help that comes with Python (pydoc_data.topics), so nothing is downloaded.
Source: Radford et al., "Language models are unsupervised multitask learners", 2019 (layer norm before).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from stagewright.document import InputError

NUM_TOKENS = 256
"""Bytes."""
LENGTH = 64
"""Tokens of one sample."""
TEST_SHARE = 0.1
"""The end of the text is held out."""


class Attention(nn.Module):
    """Causal self-attention: (batch, time, width) -> the same."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        qkv = self.qkv(x).view(batch, time, 3 * self.num_heads, width // self.num_heads)
        q, k, v = qkv.transpose(1, 2).chunk(3, dim=1)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.projection(y.transpose(1, 2).reshape(batch, time, width))
        return out


class Block(nn.Module):
    """Attention and a feed-forward net, each around a skip."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.dropout1 = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.gelu = nn.GELU()
        self.down = nn.Linear(4 * width, width)
        self.dropout2 = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout1(self.attention(self.norm1(x)))
        x = x + self.dropout2(self.down(self.gelu(self.up(self.norm2(x)))))
        return x


class Gpt(nn.Module):
    """Tokens (batch, time) -> scores of the next token (batch, time, tokens)."""

    def __init__(
        self,
        width: int = 128,
        num_blocks: int = 4,
        num_heads: int = 4,
        dropout: float = 0.1,
        tied: bool = True,
        num_tokens: int = NUM_TOKENS,
        length: int = LENGTH,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, width)
        self.position = nn.Parameter(torch.zeros(length, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, num_heads, dropout) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_tokens, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.dropout(self.embedding(tokens) + self.position[: tokens.size(1)])
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.head(self.norm(x))
        return y


class Bytes(Dataset[tuple[Tensor, Tensor]]):
    """Windows of a text, end to end: LENGTH bytes and the bytes that follow each."""

    def __init__(self, text: bytes) -> None:
        self.tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // LENGTH

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        window = self.tokens[index * LENGTH : (index + 1) * LENGTH + 1]
        return window[:-1], window[1:]


def build() -> nn.Module:
    return Gpt()


def build_without_dropout() -> nn.Module:
    return Gpt(dropout=0.0)


def build_deep() -> nn.Module:
    """Return eight blocks whose head has weights of its own, so that stages share none."""
    return Gpt(num_blocks=8, dropout=0.0, tied=False)


def build_gpt2_small() -> nn.Module:
    """Return GPT-2 small: 124 million parameters; it is trained on bytes here, too."""
    return Gpt(width=768, num_blocks=12, num_heads=12, num_tokens=50257, length=1024)


def example_input(batch_size: int) -> Tensor:
    """Return (batch_size, LENGTH) random tokens, the same for every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(NUM_TOKENS, (batch_size, LENGTH), generator=generator)


def dataset(split: str) -> Bytes:
    """Return the windows of the help text's beginning ('train') or end ('test')."""
    from pydoc_data import topics

    text = "\n".join(topics.topics[key] for key in sorted(topics.topics)).encode()
    cut = int(len(text) * (1 - TEST_SHARE))
    if split not in ("train", "test"):
        raise InputError(f"split is {split!r}, expected 'train' or 'test'")
    return Bytes(text[cut:] if split == "test" else text[:cut])


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy per token, in nats."""
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


def metric(output: Tensor, target: Tensor) -> float:
    """Return the share of tokens that are predicted exactly."""
    return (output.argmax(dim=-1) == target).float().mean().item()
