"""Whether a graph of calls does what its model does, on one input."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from stagewright.document import InputError
from stagewright.task import Task

from .inputs import called, copied, inputs_of
from .observe import execute, tensors_in
from .state import buffers_kept, state_kept
from .symbolic import place_of_node


@dataclass(frozen=True, kw_only=True)
class _Results:
    output: list[torch.Tensor]
    gradients: dict[str, torch.Tensor | None]
    """Of the parameters; None where the output does not depend on one. Empty in evaluation."""
    buffers: dict[str, torch.Tensor]
    """Afterwards."""


def demand_same_results(
    model: nn.Module,
    graph: fx.Graph,
    inputs: Mapping[int | str, Any],
    other_method: str | None = None,
    num_samples: int | None = None,
) -> None:
    """Check a graph against its model: output and buffers bit for bit, in training gradients to rounding.

    Both draw the same random numbers. Buffers and state in Python are as before afterwards. Inputs that the
    model refuses show nothing (one sample, in BatchNorm); tracing names the call that fails.

    Args:
        other_method: of tracing, for the message.
        num_samples: in the inputs, for the message; None: those that the model was traced with.

    Raises:
        InputError: one of them differs; the message has the line of the last layer whose gradients do.
    """
    try:
        wanted = _results(model, lambda: called(model, copied(inputs)))
    except Exception:  # noqa: BLE001 - the model's own errors, of any kind
        return
    found = _results(model, lambda: _value_of(model, graph, copied(inputs)))
    different = _difference(wanted, found)
    if different is not None:
        others = _other_gradients(wanted, found) if different.startswith("gradient") else []
        other = f"use --trace {other_method}, or " if other_method is not None else ""
        where = f" for {num_samples} samples" if num_samples is not None else ""
        raise InputError(
            f"{_place(model, graph, others)}: the traced graph gives another {different} than the model "
            f"does{where}, which goes another way by the number of samples, changes gradients by hooks, or "
            f"gives layers arguments that are no tensors; {other}put that part into an nn.Module whose class "
            "has stagewright_layer = True"
        )


def demand_same_at_other_sizes(
    task: Task, model: nn.Module, graph: fx.Graph, batch_size: int, other_method: str
) -> None:
    """Check a graph at one more sample than it was traced with, and at one."""
    for size in (batch_size + 1, 1):
        demand_same_results(model, graph, inputs_of(task, size, model), other_method, size)


def _results(model: nn.Module, run: Callable[[], Any]) -> _Results:
    random = torch.random.fork_rng()
    with state_kept(model), buffers_kept(model), random, torch.enable_grad():
        torch.manual_seed(0)
        output = [t if t.layout is torch.strided else t.to_dense() for t in tensors_in(run())]
        gradients = _gradients(model, output) if model.training else {}
        after = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return _Results(output=output, gradients=gradients, buffers=after)


def _gradients(model: nn.Module, output: list[torch.Tensor]) -> dict[str, torch.Tensor | None]:
    """Return gradients for a random direction: a sum would have none behind a softmax.

    Empty if the model has no backward, which measuring refuses. The whole backward runs, as in training:
    re-entrant checkpointing refuses any other.
    """
    torch.manual_seed(1)
    roots = [tensor for tensor in output if tensor.requires_grad]
    leaves = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not roots or not leaves:
        return dict.fromkeys(leaves)
    directions = [torch.rand_like(root) for root in roots]
    before = {name: p.grad for name, p in leaves.items()}
    for parameter in leaves.values():
        parameter.grad = None
    try:
        torch.autograd.backward(roots, directions)
        return {name: p.grad for name, p in leaves.items()}
    except RuntimeError:
        return {}
    finally:
        for name, parameter in leaves.items():
            parameter.grad = before[name]


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
        map(is_same, wanted.output, found.output)
    ):
        return "output"
    for name in _other_gradients(wanted, found):
        return f"gradient of {name}"
    for name, buffer in wanted.buffers.items():
        if not is_same(buffer, found.buffers[name]):
            return f"value to buffer {name}"
    return None


def _other_gradients(wanted: _Results, found: _Results) -> list[str]:
    """Return the names of the parameters whose gradients differ."""
    mine, other = wanted.gradients, found.gradients
    return [name for name in mine if not _is_close(mine[name], other.get(name))]


def _place(model: nn.Module, graph: fx.Graph, names: list[str]) -> str:
    """Return the line of the last call that holds one of some parameters."""
    differing = {id(p) for name, p in model.named_parameters() if name in names}
    for node in reversed(graph.nodes):
        if node.op == "call_module":
            held = {id(p) for p in model.get_submodule(str(node.target)).parameters()}
        else:
            held = {id(execute(model, node, {}))} if node.op == "get_attr" else set()
        if held & differing:
            return place_of_node(node)
    return "the model"


def _is_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two results are equal; sums on a GPU may have another order each time."""
    return _is_equal(a, b) or (a.is_cuda and a.is_floating_point() and _is_close(a, b))


def _is_close(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Return whether two gradients are the same to rounding: the order of their sums may differ."""
    if a is None or b is None:
        return a is b
    if _is_equal(a, b):
        return True
    bound = torch.finfo(a.dtype).eps ** 0.5 * a.norm()
    return a.shape == b.shape and bool((a - b).norm() <= bound)
