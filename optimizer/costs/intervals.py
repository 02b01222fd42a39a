"""Sums over every possible stage: tables whose entry [p, q] belongs to the layers between the cuts p and q.

Every solver reads stage costs from them; entries of cuts that are not nested mean nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stagewright.graph import AttributeOperation, LayerGraph, LayerNode, unique_parameters
from stagewright.optimizer.borders import spec_of
from stagewright.optimizer.branching.peaks import beyond_kept
from stagewright.optimizer.branching.sums import Counted
from stagewright.optimizer.voxels import Map, taken_by
from stagewright.value import VoxelsSpec, parts_of, tensors_of

from .cost import FloatArray, update_ms

if TYPE_CHECKING:
    from stagewright.optimizer.problem import Problem


@dataclass(frozen=True)
class Traffic:
    """Bytes that a stage exchanges for one micro-batch, (n + 1, n + 1) each."""

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
    """Bytes that a stage stores, (n + 1, n + 1) each."""

    parameters: FloatArray
    trained: FloatArray
    """Parameters that are trained."""
    shared: FloatArray
    """Trained parameters that layers outside of it use, too."""
    buffers: FloatArray


@dataclass(frozen=True)
class Times:
    """What a stage takes on one device type, (n + 1, n + 1) each."""

    forward_ms: FloatArray
    backward_ms: FloatArray
    update_ms: FloatArray
    saved: FloatArray
    """Bytes that autograd keeps for one micro-batch; 0 if memory is not counted."""
    working: FloatArray
    """Bytes that the unit in work holds beyond those, at most; 0 if memory is not counted."""


def traffic_of(problem: "Problem") -> Traffic:
    """Return what every stage exchanges; the model returns from the last one.

    Of sparse tensors, features go where they are taken, and the coordinates of a map once to a stage that
    takes some tensor in its rows. A sender counts the coordinates with each of these.
    """
    sums, users = problem.sums, _users(problem)
    loaded: list[Counted] = []
    values: list[Counted] = []
    gradients: list[Counted] = []
    coordinates: list[Counted] = []
    takers: dict[Map, _Takers] = {}
    for layer in problem.inputs.model.layers:
        if isinstance(layer.operation, AttributeOperation) or not users[layer.name]:
            continue
        spec = spec_of(layer, problem.microbatch_size)
        maps = [
            part for part in parts_of(spec) if isinstance(part, VoxelsSpec) and part.coordinates
        ]
        tensors = list(tensors_of(spec))
        for part in maps:
            assert part.coordinates is not None
            tensors.remove(part.coordinates)
        forward = sum(t.bytes_at(problem.microbatch_size) for t in tensors)
        if layer.is_input:
            loaded.append(Counted(forward, users[layer.name]))
            continue
        trained = [t for t in tensors if t.requires_grad and not problem.is_inference]
        backward = sum(t.bytes_at(problem.microbatch_size) for t in trained)
        made = problem.position[layer.name]
        own = _users_of_features(problem, layer, users[layer.name])
        if own:
            values.append(Counted(forward, own, made))
            gradients.append(Counted(backward, own, made))
        for place, num_bytes in _coordinate_bytes(maps, problem.microbatch_size).items():
            coordinates.append(Counted(num_bytes, users[layer.name], made))
            one = takers.setdefault(place, _Takers(num_bytes, {}))
            for user in users[layer.name]:
                one.makers.setdefault(user, []).append(made)
    received, sent = sums.any_of(values), sums.sent(values)
    into = received + sum(sums.any_taken(one.num_bytes, one.makers) for one in takers.values())
    out = sent + sums.sent(coordinates) if coordinates else sent
    if gradients == values:
        return Traffic(into, received, sums.any_of(loaded), out, sent)
    return Traffic(into, sums.any_of(gradients), sums.any_of(loaded), out, sums.sent(gradients))


@dataclass(frozen=True)
class _Takers:
    """Who takes sparse tensors in the rows of a coordinate map."""

    num_bytes: float
    """Of its coordinates."""
    makers: dict[int, list[int]]
    """By the layer that takes some: the layers that made those."""


def _coordinate_bytes(parts: Iterable[VoxelsSpec], batch_size: int) -> dict[Map, int]:
    """Return the bytes of the coordinates of each map of a value."""
    return {
        (part.manager, part.map): part.coordinates.bytes_at(batch_size)
        for part in parts
        if part.coordinates is not None
    }


def _users_of_features(
    problem: "Problem", layer: LayerNode, users: Sequence[int]
) -> tuple[int, ...]:
    """Return the users of a value that take more of it than coordinates to return to."""
    if not isinstance(layer.output, VoxelsSpec):
        return tuple(users)
    chain = problem.chain
    return tuple(u for u in users if u == len(chain) or layer.name in taken_by(chain[u]))


def holdings_of(problem: "Problem") -> Holdings:
    """Return what every stage stores; tied, shared and bare parameters once in each stage."""
    graph, sums = problem.inputs.model, problem.sums
    parameters: list[Counted] = []
    buffers: list[Counted] = []
    trained: list[Counted] = []
    canonical = graph.canonical_names
    holders: dict[tuple[bool, str], set[int]] = {}
    stored_bytes: dict[tuple[bool, str], int] = {}
    is_trained: set[tuple[bool, str]] = set()
    for layer, where in _held_at(problem, graph):
        if not layer.parameters:
            parameters.append(Counted(layer.parameter_bytes, where))
            trained.append(Counted(layer.parameter_bytes, where))
        if not layer.buffers:
            buffers.append(Counted(layer.buffer_bytes, where))
        for stored in (*layer.parameters, *layer.buffers):
            key = (stored in layer.buffers, canonical.get(stored.name, stored.name))
            holders.setdefault(key, set()).update(where)
            stored_bytes[key] = stored.spec.bytes_at(1)
            if stored.spec.requires_grad and not key[0]:
                is_trained.add(key)
    shared: list[Counted] = []
    for key, found in holders.items():
        one = Counted(stored_bytes[key], tuple(sorted(found)))
        (buffers if key[0] else parameters).append(one)
        if key in is_trained:
            trained.append(one)
            shared += [one] if len(found) > 1 else []
    if problem.is_inference:
        trained, shared = [], []
    return Holdings(
        parameters=sums.once(parameters),
        trained=sums.once(trained),
        shared=np.maximum(sums.any_of(shared) - sums.all_of(shared), 0.0),
        buffers=sums.once(buffers),
    )


def times_of(problem: "Problem", device_type: str, holdings: Holdings) -> Times:
    """Return what every stage takes on a device type; the loss is the last stage's."""
    graph, sums, end = problem.inputs.graphs[device_type], problem.sums, (len(problem.chain),)
    forward: list[Counted] = []
    backward: list[Counted] = []
    saved: list[Counted] = []
    for (
        shared
    ) in graph.shared_maps:  # Once in every stage, so not in the first layer's time as well.
        build_ms = shared.build_ms(problem.microbatch_size)
        users = tuple(problem.position[name] for name in shared.layers)
        forward += [Counted(build_ms, users), Counted(-build_ms, users[:1])]
    for layer, where in _held_at(problem, graph):
        cost = layer.cost_at(problem.microbatch_size)
        forward.append(Counted(cost.forward_ms, where))
        backward.append(Counted(cost.backward_ms, where))
        if problem.count_memory:
            saved.append(Counted(problem.saved_bytes(device_type, layer), where))
    loss_forward, loss_backward = problem.loss_ms(device_type)
    forward.append(Counted(loss_forward, end))
    backward.append(Counted(loss_backward, end))
    if problem.count_memory:
        saved.append(Counted(problem.loss_saved_bytes(device_type), end))
    whole = problem.whole_update_ms(device_type)
    update = np.asarray(update_ms(whole, holdings.trained, trained_bytes(graph)))
    forward_ms = sums.once(forward)
    return Times(
        forward_ms=forward_ms,
        backward_ms=sums.once([] if problem.is_inference else backward),
        update_ms=np.broadcast_to(update, forward_ms.shape),
        saved=sums.once(saved),
        working=_working(problem, device_type),
    )


def _working(problem: "Problem", device_type: str) -> FloatArray:
    """Return Times.working; bare parameters, which stages hold in any order, have none."""
    graph, chain, cuts = problem.inputs.graphs[device_type], problem.chain, problem.cuts
    if not problem.count_memory or problem.is_inference:
        return np.zeros((len(cuts), len(cuts)))
    layers = [graph.by_name[layer.name] for layer in chain]
    kept = [problem.saved_bytes(device_type, layer) for layer in layers]
    kept.append(problem.loss_saved_bytes(device_type))
    working = [problem.working_bytes(layer) for layer in layers]
    working.append(problem.loss_working_bytes(device_type))
    return beyond_kept(cuts, np.array(kept, dtype=np.float64), np.array(working, dtype=np.float64))


def trained_bytes(graph: LayerGraph) -> int:
    """Return the bytes of all trained parameters, tied ones once; a graph without details trains all."""
    detailed = unique_parameters(graph, graph.layers)
    known = sum(p.spec.bytes_at(1) for p in detailed.values() if p.spec.requires_grad)
    return known + sum(layer.parameter_bytes for layer in graph.layers if not layer.parameters)


def _held_at(problem: "Problem", graph: LayerGraph) -> Iterable[tuple[LayerNode, tuple[int, ...]]]:
    """Yield each layer with those of the chain whose stages hold it (bare parameters: all users).

    What nothing uses is held at the end of the model, len(chain).
    """
    users = _users(problem)
    for layer in graph.steps:
        if layer.name in problem.position:
            yield layer, (problem.position[layer.name],)
        else:
            yield layer, users[layer.name] or (len(problem.chain),)


def _users(problem: "Problem") -> dict[str, tuple[int, ...]]:
    """Return for each layer the layers of the chain that use its value, rising; last, the model's end."""
    graph = problem.inputs.model
    users: dict[str, list[int]] = {layer.name: [] for layer in graph.layers}
    for index, layer in enumerate(problem.chain):
        for name in layer.inputs:
            users[name].append(index)
    for name in graph.outputs:
        users[name].append(len(problem.chain))
    return {name: tuple(found) for name, found in users.items()}
