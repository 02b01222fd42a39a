"""Sliced attention: the keys and values of what is before a slice stand for it."""

import torch

from stagewright.models.attention_slices import SlicedLayers, grid_input


def test_slices_compute_what_the_whole_sequence_does() -> None:
    """The second half after the first half's keys and values, against both at once."""
    torch.manual_seed(0)
    model = SlicedLayers(1, 128)
    x, none, _ = grid_input(model, 2, 16, 0)
    whole = model(x, none, none)
    layer: torch.nn.Module = model.layers[0]
    qkv = layer.qkv(layer.norm1(x[:, :8])).view(2, 8, 6, 64).transpose(1, 2)  # type: ignore[operator]
    _, k, v = qkv.chunk(3, dim=1)
    torch.testing.assert_close(model(x[:, 8:], k[None], v[None]), whole[:, 8:])
