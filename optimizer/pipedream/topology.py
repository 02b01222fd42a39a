"""The layers of a text graph that stages can hold, in an order that keeps few bytes alive."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from stagewright.document import InputError
from stagewright.optimizer.branching.orders import few_bytes_order
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
    order = few_bytes_order([sum(node.activations) for node in nodes], targets)
    if len(order) < len(nodes):
        left = min(set(range(len(nodes))) - set(order))
        raise InputError(
            f"layer {nodes[left].name!r} is on or behind a cycle of edges, expected a graph without one"
        )
    place = {number: position for position, number in enumerate(order)}
    return Topology(
        tuple(nodes[number] for number in order),
        tuple(tuple(sorted(place[t] for t in targets[number])) for number in order),
    )
