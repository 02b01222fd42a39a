"""Transformer layers that compute a slice of a sequence, the keys and values of what is before it given.

A middle stage of a language model under token slicing: stagewright profile --grid measures what slices cost.
Source: Li et al., "TeraPipe", ICML 2021; the layer is GPT-2's (Radford et al., 2019).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

HEAD_WIDTH = 64
LENGTH = 64
"""Tokens of the example input."""


class SlicedLayer(nn.Module):
    """One layer: (batch, length, width) -> the same; keys and values: (batch, heads, context, head width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads = max(1, width // HEAD_WIDTH)
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3 * self.num_heads, -1)
        q, k, v = qkv.transpose(1, 2).chunk(3, dim=1)
        if keys.size(2):
            k, v = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
        mask = causal_lower_right(length, k.size(2))
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.projection(y.transpose(1, 2).reshape(batch, length, width))
        out: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return out


class SlicedLayers(nn.Module):
    """A stack; the contexts of all layers are one tensor with the layers first."""

    def __init__(self, num_layers: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.ModuleList(SlicedLayer(width) for _ in range(num_layers))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x, keys[i], values[i])
        return x


def grid_model(num_layers: int, width: int) -> SlicedLayers:
    return SlicedLayers(num_layers, width)


def grid_input(
    model: SlicedLayers, batch_size: int, length: int, context: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a slice and the keys and values before it, random, which all need gradients."""
    generator = torch.Generator().manual_seed(0)
    num_heads = max(1, model.width // HEAD_WIDTH)
    cache = (len(model.layers), batch_size, num_heads, context, model.width // num_heads)
    shapes = ((batch_size, length, model.width), cache, cache)
    x, keys, values = (torch.randn(shape, generator=generator) for shape in shapes)
    return x.requires_grad_(), keys.requires_grad_(), values.requires_grad_()


def build() -> SlicedLayers:
    return SlicedLayers(num_layers=2, width=128)


def example_input(batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a whole sequence: there is nothing before it."""
    x, keys, values = grid_input(build(), batch_size, LENGTH, 0)
    return x.detach(), keys.detach(), values.detach()
