"""Sums over every run of layers: tables whose entry [i, j] belongs to the chain's layers i up to, not
including, j. Every solver reads stage costs from them; entries with i >= j mean nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from stagewright.graph import AttributeOperation, LayerGraph, LayerNode
from stagewright.optimizer.borders import spec_of
from stagewright.optimizer.problem import Problem, trained_bytes
from stagewright.value import tensors_of

from .cost import FloatArray, update_ms


@dataclass(frozen=True)
class Traffic:
    """Bytes that a stage exchanges for one micro-batch, (L + 1, L + 1) each."""

    received: FloatArray
    """Values made before it that it uses."""
    received_gradient: FloatArray
    """The part of those for which it sends a gradient back."""
    loaded: FloatArray
    """The model's inputs that it uses."""
    sent: FloatArray
    """Values that it makes and later stages use, each once."""
    sent_gradient: FloatArray
    """The part of those for which a gradient comes back."""


@dataclass(frozen=True)
class Holdings:
    """Bytes that a stage stores, (L + 1, L + 1) each."""

    parameters: FloatArray
    trained: FloatArray
    """Parameters that are trained."""
    shared: FloatArray
    """Trained parameters that layers outside of it use, too."""
    buffers: FloatArray


@dataclass(frozen=True)
class Times:
    """What a stage takes on one device type, (L + 1, L + 1) each."""

    forward_ms: FloatArray
    backward_ms: FloatArray
    update_ms: FloatArray
    saved: FloatArray
    """Bytes that autograd keeps for one micro-batch; 0 if memory is not counted."""


def traffic_of(problem: Problem) -> Traffic:
    """Return what every run of layers exchanges; the model returns from the last layer."""
    graph, size = problem.inputs.model, len(problem.chain)
    position = {layer.name: index for index, layer in enumerate(problem.chain)}
    received, received_gradient, loaded, sent, sent_gradient = _zeros(size, 5)
    users = _users(graph, position)
    for layer in graph.layers:
        if isinstance(layer.operation, AttributeOperation):
            continue
        tensors = list(tensors_of(spec_of(layer, problem.microbatch_size)))
        forward = sum(t.bytes_at(problem.microbatch_size) for t in tensors)
        trained = [t for t in tensors if t.requires_grad and not problem.is_inference]
        backward = sum(t.bytes_at(problem.microbatch_size) for t in trained)
        if layer.is_input:
            _add_once(loaded, users[layer.name], forward)
            continue
        made = position[layer.name]
        later = [user for user in users[layer.name] if user > made]
        _add_once(received, later, forward, after=made)
        _add_once(received_gradient, later, backward, after=made)
        if later:
            sent[: made + 1, made + 1 : max(later) + 1] += forward
            sent_gradient[: made + 1, made + 1 : max(later) + 1] += backward
    return Traffic(received, received_gradient, loaded, sent, sent_gradient)


def holdings_of(problem: Problem) -> Holdings:
    """Return what every run of layers stores; tied, shared and bare parameters once in each stage."""
    graph, size = problem.inputs.model, len(problem.chain)
    parameters, trained, shared, buffers = _zeros(size, 4)
    canonical = graph.canonical_names
    holders: dict[tuple[bool, str], set[int]] = {}
    num_bytes: dict[tuple[bool, str], int] = {}
    is_trained: set[tuple[bool, str]] = set()
    for layer, where in _held_at(graph, problem.chain):
        if not layer.parameters:
            _add_once(parameters, where, layer.parameter_bytes)
            if not problem.is_inference:
                _add_once(trained, where, layer.parameter_bytes)
        if not layer.buffers:
            _add_once(buffers, where, layer.buffer_bytes)
        for stored in (*layer.parameters, *layer.buffers):
            key = (stored in layer.buffers, canonical.get(stored.name, stored.name))
            holders.setdefault(key, set()).update(where)
            num_bytes[key] = stored.spec.bytes_at(1)
            if stored.spec.requires_grad and not key[0] and not problem.is_inference:
                is_trained.add(key)
    for key, found in holders.items():
        where = sorted(found)
        _add_once(buffers if key[0] else parameters, where, num_bytes[key])
        if key in is_trained:
            _add_once(trained, where, num_bytes[key])
            _add_once(shared, where, num_bytes[key])
            shared[: where[0] + 1, where[-1] + 1 :] -= num_bytes[key]
    return Holdings(parameters, trained, shared, buffers)


def times_of(problem: Problem, device_type: str, holdings: Holdings) -> Times:
    """Return what every run of layers takes on a device type; the loss is the last layer's."""
    graph, size = problem.inputs.graphs[device_type], len(problem.chain)
    forward, backward, saved = _zeros(size, 3)
    for layer, where in _held_at(graph, tuple(graph.by_name[s.name] for s in problem.chain)):
        cost = layer.cost_at(problem.microbatch_size)
        _add_once(forward, where, cost.forward_ms)
        if not problem.is_inference:
            _add_once(backward, where, cost.backward_ms)
        if problem.count_memory:
            _add_once(saved, where, problem.saved_bytes(device_type, layer))
    loss_forward, loss_backward = problem.loss_ms(device_type)
    _add_once(forward, [size - 1], loss_forward)
    _add_once(backward, [size - 1], loss_backward)
    if problem.count_memory:
        _add_once(saved, [size - 1], problem.loss_saved_bytes(device_type))
    whole = problem.whole_update_ms(device_type)
    update = np.asarray(update_ms(whole, holdings.trained, trained_bytes(graph)))
    return Times(forward, backward, np.broadcast_to(update, forward.shape), saved)


def _held_at(
    graph: LayerGraph, chain: Sequence[LayerNode]
) -> Iterable[tuple[LayerNode, list[int]]]:
    """Yield each layer with the positions in the chain whose stages hold it (bare parameters: all users)."""
    position = {layer.name: index for index, layer in enumerate(chain)}
    users = _users(graph, position)
    for layer in graph.steps:
        if layer.name in position:
            yield layer, [position[layer.name]]
        else:
            yield layer, users[layer.name] or [len(chain) - 1]


def _users(graph: LayerGraph, position: dict[str, int]) -> dict[str, list[int]]:
    """Return for each layer the rising positions in the chain that use its value."""
    users: dict[str, set[int]] = {layer.name: set() for layer in graph.layers}
    for layer in graph.layers:
        if layer.name in position:
            for name in layer.inputs:
                users[name].add(position[layer.name])
    for name in graph.outputs:
        users[name].add(len(position) - 1)
    return {name: sorted(found) for name, found in users.items()}


def _zeros(size: int, count: int) -> list[FloatArray]:
    return [np.zeros((size + 1, size + 1)) for _ in range(count)]


def _add_once(
    table: FloatArray, positions: Sequence[int], amount: float, *, after: int = -1
) -> None:
    """Add an amount to every run that starts behind `after` and holds one of the rising positions."""
    start = after + 1
    for position in positions:
        table[start : position + 1, position + 1 :] += amount
        start = position + 1
