"""The backward in two parts against the whole one, on graphs with branches, skips and shared modules."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from stagewright.runtime.execution.split_backward import backward_of_inputs

Forward = Callable[[nn.ModuleDict, list[torch.Tensor]], list[torch.Tensor]]


def residual(m: nn.ModuleDict, x: list[torch.Tensor]) -> list[torch.Tensor]:
    y = x[0] + m["two"](torch.relu(m["one"](m["norm"](x[0]))))
    return [y]


def two_in_two_out(m: nn.ModuleDict, x: list[torch.Tensor]) -> list[torch.Tensor]:
    first, second = m["one"](x[0] * x[1]).chunk(2, dim=-1)
    return [first.exp(), m["norm"](torch.cat([second, first], dim=-1)) + x[1]]


def without_path(m: nn.ModuleDict, x: list[torch.Tensor]) -> list[torch.Tensor]:
    """The second output leads to parameters only."""
    return [m["one"](x[0]), m["two"](m["norm"](torch.ones_like(x[0])))]


def shared(m: nn.ModuleDict, x: list[torch.Tensor]) -> list[torch.Tensor]:
    return [m["one"](torch.tanh(m["one"](x[0])))]


def unused_leaf(m: nn.ModuleDict, x: list[torch.Tensor]) -> list[torch.Tensor]:
    return [m["two"](x[1])]


def convolution(m: nn.ModuleDict, x: list[torch.Tensor]) -> list[torch.Tensor]:
    return [m["conv"](x[0].reshape(1, 3, 2, 2)).relu().sum()]


def weight(module: nn.Module) -> torch.Tensor:
    return module.get_parameter("weight")


def without_bias(m: nn.ModuleDict, x: list[torch.Tensor]) -> list[torch.Tensor]:
    """Products of one matrix, of the same with a fixed bias, and with a matrix that is computed."""
    one, two, norm = weight(m["one"]), weight(m["two"]), weight(m["norm"])
    rows = torch.addmm(
        torch.ones(4, dtype=one.dtype), torch.nn.functional.linear(x[0], one), two.t()
    )
    return [rows.mm(norm.diag().t())]


def scaled(m: nn.ModuleDict, x: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.addmm(weight(m["norm"]), x[0], weight(m["one"]).t(), beta=3, alpha=2)]


CASES: list[Forward] = [
    residual, two_in_two_out, without_path, shared, unused_leaf, convolution, without_bias, scaled,
]  # fmt: skip


@pytest.mark.parametrize("forward", CASES)
def test_both_parts_together_are_the_whole_backward(forward: Forward) -> None:
    torch.manual_seed(0)
    modules = nn.ModuleDict(
        {
            "one": nn.Linear(4, 4),
            "two": nn.Linear(4, 4),
            "norm": nn.LayerNorm(4),
            "conv": nn.Conv2d(3, 2, 2),
        }
    ).double()
    values = torch.randn(2, 3, 4, dtype=torch.float64)
    found: list[list[torch.Tensor | None]] = []
    for is_split in (False, True):
        modules.zero_grad(set_to_none=True)
        for _ in range(2):  # The second time adds.
            leaves = [value.clone().requires_grad_() for value in values]
            roots = forward(modules, leaves)
            generator = torch.Generator().manual_seed(1)
            gradients = [
                torch.randn(root.shape, dtype=torch.float64, generator=generator) for root in roots
            ]
            if is_split:
                of_leaves, weights = backward_of_inputs(roots, gradients, leaves)
                weights.run()
            else:
                torch.autograd.backward(roots, gradients)
                of_leaves = [leaf.grad for leaf in leaves]
        found.append([*of_leaves, *(parameter.grad for parameter in modules.parameters())])
    whole, split = found
    for expected, gradient in zip(whole, split, strict=True):
        if expected is None:
            assert gradient is None
        else:
            assert gradient is not None
            torch.testing.assert_close(gradient, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("is_watched", [False, True])
def test_linear_layers_have_the_bits_of_the_whole_backward(is_watched: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20, bias=False))
    seen: list[torch.Tensor] = []
    if is_watched:
        weight(model[0]).register_post_accumulate_grad_hook(seen.append)  # type: ignore[no-untyped-call]
    found = []
    for is_split in (False, True):
        model.zero_grad(set_to_none=True)
        for seed in range(2):
            torch.manual_seed(seed)
            leaf = torch.randn(5, 7, 40, requires_grad=True)
            output = model(leaf)
            gradient = torch.randn_like(output)
            if is_split:
                backward_of_inputs([output], [gradient], [leaf])[1].run()
            else:
                output.backward(gradient)
        found.append([parameter.grad for parameter in model.parameters()])
    for whole, split in zip(*found, strict=True):
        assert torch.equal(whole, split)
    assert len(seen) == 4 * is_watched


def test_the_first_part_adds_nothing_to_the_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    leaf = torch.ones(2, 4, requires_grad=True)
    output = model(leaf)
    (gradient,), weights = backward_of_inputs([output], [torch.ones_like(output)], [leaf])
    assert gradient is not None
    assert all(parameter.grad is None for parameter in model.parameters())
    weights.run()
    assert all(parameter.grad is not None for parameter in model.parameters())
