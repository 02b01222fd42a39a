"""What a cut cannot part: single layers, and layers that may as well stay together.

A layer without cost, parameters and saved bytes is joined to the layer that makes its only input, or to the
layer that is its only user, where no message grows by that: for any plan that parts them there is one as good
that does not. So the number of cuts stays small, and the best plan is still among them.

Layers that use memory in place must see it as in the model's own order; that adds edges.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stagewright.graph import LayerGraph, LayerNode
from stagewright.optimizer.borders import chain_of, spec_of
from stagewright.value import tensors_of


@dataclass(frozen=True)
class Units:
    """Layers of the chain, joined, with the edges between them."""

    layers: tuple[tuple[int, ...], ...]
    """Of each unit: positions in the chain, rising. Units are in a topological order."""
    sources: tuple[tuple[int, ...], ...]
    """Of each unit, the units that must come before it, rising."""
    output_bytes: tuple[float, ...]
    """Of each unit: what later units take from it."""

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        return tuple((s, unit) for unit, found in enumerate(self.sources) for s in found)

    @property
    def targets(self) -> tuple[tuple[int, ...], ...]:
        """Of each unit, the units that must come after it, rising."""
        found: list[list[int]] = [[] for _ in self.sources]
        for source, unit in self.edges:
            found[source].append(unit)
        return tuple(map(tuple, found))


IsFree = Callable[[LayerNode], bool]
Pair = tuple[int, int]
"""Bytes of a value, and of its gradient."""


def units_of(graph: LayerGraph, batch_size: int, is_free: IsFree) -> Units:
    """Return the units of a graph's chain.

    Args:
        is_free: whether a layer takes no time and autograd keeps nothing for it, on every device type.
    """
    chain = chain_of(graph)
    position = {layer.name: index for index, layer in enumerate(chain)}
    users: list[list[int]] = [[] for _ in chain]
    for index, layer in enumerate(chain):
        for name in layer.inputs:
            if name in position:
                users[position[name]].append(index)
    sources = _sources(graph, chain, position)
    num_bytes = [_bytes(layer, batch_size) for layer in chain]
    stays = _join(graph, chain, position, users, num_bytes, is_free)
    return _build(graph, chain, sources, users, stays, num_bytes)


def _sources(
    graph: LayerGraph, chain: Sequence[LayerNode], position: dict[str, int]
) -> list[set[int]]:
    """Return for each layer the layers that must come before it."""
    users: dict[str, list[int]] = {}
    holder: dict[str, int] = {}
    sources: list[set[int]] = []
    for index, layer in enumerate(chain):
        own = {position[name] for name in layer.inputs if name in position}
        if layer.overwrites is not None:
            # Who took the value before it was changed must still find it.
            own |= set(users.get(layer.overwrites, ()))
        for buffer in layer.buffers:
            # Two calls of a module change its buffers one after the other.
            name = graph.canonical_names.get(buffer.name, buffer.name)
            own |= {holder[name]} if name in holder else set()
            holder[name] = index
        for name in layer.inputs:
            users.setdefault(name, []).append(index)
        sources.append(own - {index})
    return sources


def _bytes(layer: LayerNode, batch_size: int) -> Pair:
    """Return the bytes of a layer's value, and of its gradient."""
    tensors = list(tensors_of(spec_of(layer, batch_size)))
    return (
        sum(t.bytes_at(batch_size) for t in tensors),
        sum(t.bytes_at(batch_size) for t in tensors if t.requires_grad),
    )


def _join(
    graph: LayerGraph,
    chain: Sequence[LayerNode],
    position: dict[str, int],
    users: Sequence[Sequence[int]],
    num_bytes: Sequence[Pair],
    is_free: IsFree,
) -> list[int]:
    """Return for each layer the layer that it stays with, itself if none."""
    changed = {layer.overwrites for layer in chain if layer.overwrites is not None}
    stays = list(range(len(chain)))
    for index, layer in enumerate(chain):
        inside = [position[name] for name in layer.inputs if name in position]
        plain = not (layer.parameters or layer.buffers or layer.parameter_bytes)
        plain = plain and not layer.buffer_bytes and layer.overwrites is None
        plain = plain and not changed & {layer.name, *layer.inputs}
        if not (plain and inside and len(inside) == len(layer.inputs) and is_free(layer)):
            continue
        own, first = num_bytes[index], inside[0]
        only = users[first] == [index] and chain[first].name not in graph.outputs
        if len(inside) == 1 and (own == (0, 0) or (only and _at_most(own, num_bytes[first]))):
            if stays[first] != index:
                stays[index] = first
            continue
        if len(users[index]) == 1 and layer.name not in graph.outputs:
            taken = [num_bytes[number] for number in inside]
            total = (sum(pair[0] for pair in taken), sum(pair[1] for pair in taken))
            following = users[index][0]
            if chain[following].overwrites is None and _at_most(total, own):
                stays[index] = following
    return stays


def _at_most(one: Pair, other: Pair) -> bool:
    return one[0] <= other[0] and one[1] <= other[1]


def _build(
    graph: LayerGraph,
    chain: Sequence[LayerNode],
    sources: Sequence[set[int]],
    users: Sequence[Sequence[int]],
    stays: Sequence[int],
    num_bytes: Sequence[Pair],
) -> Units:
    root = list(stays)
    for index in range(len(root)):
        while root[index] != root[root[index]]:
            root[index] = root[root[index]]
    groups: dict[int, list[int]] = {}
    for index, own in enumerate(root):
        groups.setdefault(own, []).append(index)
    before = {
        own: {root[s] for index in group for s in sources[index]} - {own}
        for own, group in groups.items()
    }
    order = _topological(before)
    number = {own: unit for unit, own in enumerate(order)}
    made = [0.0] * len(order)
    for index, layer in enumerate(chain):
        leaves = any(root[user] != root[index] for user in users[index])
        if leaves or layer.name in graph.outputs:
            made[number[root[index]]] += num_bytes[index][0]
    return Units(
        layers=tuple(tuple(groups[own]) for own in order),
        sources=tuple(tuple(sorted(number[s] for s in before[own])) for own in order),
        output_bytes=tuple(made),
    )


def _topological(before: dict[int, set[int]]) -> list[int]:
    """Return the keys in a topological order, smallest first among those that may follow."""
    missing = {own: len(found) for own, found in before.items()}
    after: dict[int, list[int]] = {own: [] for own in before}
    for own, found in before.items():
        for source in found:
            after[source].append(own)
    ready = [own for own, number in missing.items() if not number]
    heapq.heapify(ready)
    order = []
    while ready:
        own = heapq.heappop(ready)
        order.append(own)
        for target in after[own]:
            missing[target] -= 1
            if not missing[target]:
                heapq.heappush(ready, target)
    assert len(order) == len(before), "joined layers make no cycle"
    return order
