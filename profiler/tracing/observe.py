"""Running a traced graph call by call and watching each: its value, what it overwrites, randomness."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from stagewright.document import InputError

from .state import buffers_kept
from .symbolic import first_line, place_of_node
from .voxels import SparseValue, is_sparse, observed


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What one call did."""

    value: Any
    """Numbers and containers as they are; tensors on the meta device, without their values."""
    overwritten: frozenset[fx.Node] = frozenset()
    """The nodes whose tensors it changed in place and that are its arguments or used later."""
    returns_overwritten: bool = False
    """Whether it returns the very tensor that it changed."""
    overwritten_is_used_later: bool = False
    overwrites_stored: bool = False
    """Whether what it changed is the memory of a parameter or buffer, as weight.data is."""
    random: bool = False


@dataclass
class _Run:
    """The values that are still needed."""

    values: dict[fx.Node, Any] = field(default_factory=dict)
    last_use: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def forget_after(self, node: fx.Node) -> None:
        for other in (*node.all_input_nodes, node):
            if self.last_use.get(other, node) is node:
                self.values.pop(other, None)


def observe(
    model: nn.Module, graph: fx.Graph, inputs: Mapping[int | str, Any]
) -> dict[fx.Node, Observation]:
    """Run the graph once in the model's mode, with gradients on, and return what each call did.

    Buffers and the random generators are as before afterwards.

    Raises:
        InputError: a call fails, or overwrites memory that other layers' values share.
    """
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    run = _Run()
    for node in graph.nodes:
        run.last_use.update(dict.fromkeys(node.all_input_nodes, node))
    observations: dict[fx.Node, Observation] = {}
    waiting = iter(inputs.values())
    with buffers_kept(model), torch.random.fork_rng(devices=devices), torch.enable_grad():
        for node in graph.nodes:
            if node.op == "placeholder":
                run.values[node] = next(waiting)
                observations[node] = Observation(value=without_data(run.values[node]))
            elif node.op != "output":
                observations[node] = _observe_call(model, node, run, devices)
            run.forget_after(node)
    return observations


def execute(model: nn.Module, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """Return the value of one call, given the values of the nodes that it takes."""
    arguments, keywords = fx.node.map_arg((node.args, node.kwargs), lambda other: values[other])
    if node.op == "call_module":
        return model.get_submodule(str(node.target))(*arguments, **keywords)
    if node.op == "call_function":
        assert callable(node.target)
        return node.target(*arguments, **keywords)
    if node.op == "call_method":
        return getattr(arguments[0], str(node.target))(*arguments[1:], **keywords)
    assert node.op == "get_attr", node.op
    path, _, name = str(node.target).rpartition(".")
    return getattr(model.get_submodule(path), name)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a value, depth first, in order; of sparse tensors the features."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, SparseValue) or is_sparse(value):
        yield value.F


def without_data(value: Any) -> Any:
    """Return a value whose dense tensors are on the meta device, with the same shape, dtype and grad."""
    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        return torch.empty(value.shape, dtype=value.dtype, device="meta").requires_grad_(
            value.requires_grad
        )
    if is_sparse(value):
        return observed(value)
    if type(value) in (tuple, list):
        return type(value)(without_data(item) for item in value)
    if isinstance(value, tuple) and type(value).__module__ == "torch.return_types":
        return tuple(map(without_data, value))
    if isinstance(value, dict):
        return {key: without_data(item) for key, item in value.items()}
    return value


def _observe_call(model: nn.Module, node: fx.Node, run: _Run, devices: list[int]) -> Observation:
    before = {other: _versions(value) for other, value in run.values.items()}
    states = _random_states(devices)
    try:
        value = execute(model, node, run.values)
    except Exception as error:
        raise InputError(
            f"{place_of_node(node)}: layer {node.name!r} ({node.target}) fails on the example input: "
            f"{type(error).__name__}: {first_line(error)}; correct the model or example_input"
        ) from error
    _demand_independent_of_values(node, value, run)
    drawn = any(not torch.equal(a, b) for a, b in zip(states, _random_states(devices), strict=True))
    changed = [
        other for other, versions in before.items() if versions != _versions(run.values[other])
    ]
    returned = {id(tensor) for tensor in tensors_in(value)}
    same = any(id(t) in returned for other in changed for t in tensors_in(run.values[other]))
    is_used_later = any(run.last_use.get(other) is not node for other in changed)
    overwrites_stored = any(_is_stored(model, run.values[other]) for other in changed)
    run.values[node] = value
    return Observation(
        value=without_data(value),
        overwritten=frozenset(changed),
        returns_overwritten=same,
        overwritten_is_used_later=is_used_later,
        overwrites_stored=overwrites_stored,
        random=drawn,
    )


def _demand_independent_of_values(node: fx.Node, value: Any, run: _Run) -> None:
    """Check that a number made from tensors follows from their shapes: without values it is the same.

    Raises:
        InputError: it does not; such a number would be a constant in the graph.
    """
    made_by_call = node.op in ("call_function", "call_method")
    if not made_by_call or value is None or isinstance(value, torch.device):
        return
    if any(True for _ in tensors_in(value)):
        return
    shapes = {other: without_data(run.values[other]) for other in node.all_input_nodes}
    if not any(True for _ in tensors_in(list(shapes.values()))):
        return
    try:
        is_same = bool(execute(nn.Module(), node, shapes) == value)
    except (RuntimeError, NotImplementedError):
        is_same = False
    if not is_same:
        raise InputError(
            f"{place_of_node(node)}: layer {node.name!r} ({node.target}) makes a Python value from the "
            "values of tensors, which differ from step to step; compute with tensors instead"
        )


def _is_stored(model: nn.Module, value: Any) -> bool:
    """Return whether a value has the memory of a parameter or a buffer."""
    dense = [tensor for tensor in tensors_in(value) if tensor.layout is torch.strided]
    held = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())} - {0}
    return any(tensor.untyped_storage().data_ptr() in held for tensor in dense)


def _versions(value: Any) -> list[int]:
    return [tensor._version for tensor in tensors_in(value)]


def _random_states(devices: list[int]) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
