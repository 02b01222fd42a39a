"""Whether a graph of calls does what its model does, on one input."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from stagewright.document import InputError

from .observe import execute, tensors_in


@dataclass(frozen=True, kw_only=True)
class _Results:
    output: list[torch.Tensor]
    gradients: dict[str, torch.Tensor | None]
    """Of the parameters; None where the output does not depend on one. None at all in evaluation."""
    buffers: dict[str, torch.Tensor]
    """Afterwards."""


def demand_same_results(model: nn.Module, graph: fx.Graph, inputs: Mapping[int | str, Any]) -> None:
    """Check a graph against its model: output and buffers bit for bit, in training gradients to rounding.

    Both draw the same random numbers. Buffers are as before afterwards.

    Raises:
        InputError: one of them differs.
    """
    arguments = [value for key, value in inputs.items() if isinstance(key, int)]
    keywords = {key: value for key, value in inputs.items() if isinstance(key, str)}
    wanted = _results(model, lambda: model(*arguments, **keywords))
    found = _results(model, lambda: _value_of(model, graph, inputs))
    different = _difference(wanted, found)
    if different is not None:
        raise InputError(
            f"the model: its exported program gives another {different} than it does, so it keeps state "
            "outside of parameters and buffers, changes gradients by hooks, or gives layers arguments that "
            "are no tensors; use --trace fx, or put that part into an nn.Module whose class has "
            "stagewright_layer = True"
        )


def _results(model: nn.Module, run: Callable[[], Any]) -> _Results:
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        output = list(tensors_in(run()))
        gradients = _gradients(model, output) if model.training else {}
    after = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
    return _Results(output=output, gradients=gradients, buffers=after)


def _gradients(model: nn.Module, output: list[torch.Tensor]) -> dict[str, torch.Tensor | None]:
    """Return gradients for a random direction: a sum would have none behind a softmax."""
    torch.manual_seed(1)
    roots = [tensor for tensor in output if tensor.requires_grad]
    leaves = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not roots or not leaves:
        return dict.fromkeys(leaves)
    directions = [torch.rand_like(root) for root in roots]
    found = torch.autograd.grad(roots, list(leaves.values()), directions, allow_unused=True)
    return dict(zip(leaves, found, strict=True))


def _value_of(model: nn.Module, graph: fx.Graph, inputs: Mapping[int | str, Any]) -> Any:
    waiting = iter(inputs.values())
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "output":
            return fx.node.map_arg(node.args[0], lambda other: values[other])
        values[node] = next(waiting) if node.op == "placeholder" else execute(model, node, values)
    raise AssertionError("the graph has no output")


def _difference(wanted: _Results, found: _Results) -> str | None:
    """Return what differs, None if nothing does."""
    if len(wanted.output) != len(found.output) or not all(
        map(_is_equal, wanted.output, found.output)
    ):
        return "output"
    for name, gradient in wanted.gradients.items():
        if not _is_close(gradient, found.gradients[name]):
            return f"gradient of {name}"
    for name, buffer in wanted.buffers.items():
        if not _is_equal(buffer, found.buffers[name]):
            return f"value to buffer {name}"
    return None


def _is_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _is_close(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Return whether two gradients are the same to rounding: the order of their sums may differ."""
    if a is None or b is None:
        return a is b
    if _is_equal(a, b):
        return True
    bound = torch.finfo(a.dtype).eps ** 0.5 * a.norm()
    return a.shape == b.shape and bool((a - b).norm() <= bound)
