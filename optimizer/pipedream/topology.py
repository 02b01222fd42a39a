"""The layers of a text graph that stages can hold, in an order that keeps few bytes alive."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from stagewright.document import InputError
from stagewright.pipedream_graph import TextGraph, TextNode

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Topology:
    """The layers to plan, in a topological order, numbered 0, 1, ... in it; each edge once."""

    nodes: tuple[TextNode, ...]
    targets: tuple[tuple[int, ...], ...]
    """Of each layer, the layers that take its value, in ascending order."""

    @cached_property
    def sources(self) -> tuple[tuple[int, ...], ...]:
        """Of each layer, the layers whose values it takes, in ascending order."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for source, targets in enumerate(self.targets):
            for target in targets:
                found[target].append(source)
        return tuple(map(tuple, found))

    @property
    def is_chain(self) -> bool:
        """Whether every layer takes the value of the one before it and no other."""
        last = len(self.nodes) - 1
        return all(t == (() if i == last else (i + 1,)) for i, t in enumerate(self.targets))

    @cached_property
    def output_bytes(self) -> FloatArray:
        """(L,) bytes that each layer returns."""
        return np.array([sum(node.activations) for node in self.nodes])

    @cached_property
    def parameter_bytes(self) -> FloatArray:
        """(L,)"""
        return np.array([node.parameter_bytes for node in self.nodes])

    @cached_property
    def forward_s(self) -> FloatArray:
        """(L,) seconds of one micro-batch."""
        return np.array([node.forward_ms for node in self.nodes]) / 1e3

    @cached_property
    def backward_s(self) -> FloatArray:
        """(L,) seconds of one micro-batch."""
        return np.array([node.backward_ms for node in self.nodes]) / 1e3


def topology_of(graph: TextGraph, *, keep_inputs: bool = False) -> Topology:
    """Return the layers to plan: all but the model's inputs and results that nothing uses.

    Inputs are sources whose description starts with "Input"; unused results are sinks "__getitem__(...)".
    With keep_inputs nothing is left out, as PipeDream's planner for inference does.

    Raises:
        InputError: the graph has a cycle or nothing to plan.
    """
    has_source = {target for _, target in graph.edges}
    has_target = {source for source, _ in graph.edges}
    nodes = tuple(
        node
        for node in graph.nodes
        if keep_inputs
        or not (
            (node.name not in has_source and node.description.startswith("Input"))
            or (node.name not in has_target and node.description.startswith("__getitem__"))
        )
    )
    if not nodes:
        raise InputError("the graph has inputs only, expected at least one layer to plan")
    numbers = {node.name: number for number, node in enumerate(nodes)}
    targets: list[set[int]] = [set() for _ in nodes]
    for source, target in graph.edges:
        if source in numbers and target in numbers:
            targets[numbers[source]].add(numbers[target])
    order = _order(nodes, targets)
    place = {number: position for position, number in enumerate(order)}
    return Topology(
        tuple(nodes[number] for number in order),
        tuple(tuple(sorted(place[t] for t in targets[number])) for number in order),
    )


def _order(nodes: Sequence[TextNode], targets: Sequence[set[int]]) -> list[int]:
    """Return a topological order; next is what leaves the fewest bytes alive, then what is newest.

    Every set of layers that all orders pass through is passed through by this one, too.
    """
    num_bytes = [sum(node.activations) for node in nodes]
    sources: list[list[int]] = [[] for _ in nodes]
    for source, found in enumerate(targets):
        for target in found:
            sources[target].append(source)
    num_missing = [len(found) for found in sources]
    num_users = [len(found) for found in targets]
    since = [0 if not missing else -1 for missing in num_missing]
    """When a layer became ready; -1: it is not, or it has been placed."""
    order: list[int] = []

    def entry(number: int) -> tuple[float, int, int]:
        freed = sum(num_bytes[s] for s in sources[number] if num_users[s] == 1)
        made = num_bytes[number] if targets[number] else 0.0
        return made - freed, -since[number], number

    heap = [entry(number) for number, start in enumerate(since) if start == 0]
    heapq.heapify(heap)
    while heap:
        number = heapq.heappop(heap)[2]
        if since[number] < 0:
            continue  # placed by an entry with a smaller key
        since[number] = -1
        order.append(number)
        for target in sorted(targets[number]):
            num_missing[target] -= 1
            if not num_missing[target]:
                since[target] = len(order)
                heapq.heappush(heap, entry(target))
        for source in sources[number]:
            num_users[source] -= 1
            if num_users[source] == 1:  # its last user now frees it
                for target in targets[source]:
                    if since[target] >= 0:
                        heapq.heappush(heap, entry(target))
    if len(order) < len(nodes):
        left = min(n for n, missing in enumerate(num_missing) if missing)
        raise InputError(
            f"layer {nodes[left].name!r} is on or behind a cycle of edges, expected a graph without one"
        )
    return order
