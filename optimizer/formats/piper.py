"""The JSON files of Piper (NeurIPS 2021) and the cost model `piper`.

A node has, per tensor-parallel degree, one or more options (plain, with activation recomputation). A stage
is a set of nodes between two downsets with a tensor-parallel degree t, d replicas and one option per node.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from stagewright.document import InputError, Record

from .decode import decode_json, refuse_cycle


class Option(Record):
    """How one device of t runs a node."""

    id: str
    seconds_per_sample: float = msgspec.field(name="timePerSample")
    """Forward and backward."""
    parameter_bytes: float = msgspec.field(name="parameterSize")
    bytes_per_unit: float = msgspec.field(name="memoryUsageA")
    """Kept per micro-batch in flight."""
    fixed_bytes: float = msgspec.field(name="memoryUsageB")
    sync_in_bytes: dict[str, float] = msgspec.field(name="syncTimeFw")
    """By predecessor: moved beside the edge's own bytes if it lies in another stage."""
    sync_out_bytes: dict[str, float] = msgspec.field(name="syncTimeBw")
    """By successor."""


class _Node(Record):
    id: int
    name: str
    options: dict[str, tuple[Option, ...]] = msgspec.field(name="TMPCs")


class _Edge(Record):
    source: int = msgspec.field(name="sourceId")
    target: int = msgspec.field(name="destId")
    num_bytes: float = msgspec.field(name="communicationCost")


class _File(Record):
    memory_bytes: float = msgspec.field(name="maxMemoryPerDevice")
    num_devices: int = msgspec.field(name="maxDevices")
    samples_per_batch: int = msgspec.field(name="mbsInBatch")
    bandwidth_bytes_per_s: float = msgspec.field(name="bandwidth")
    nodes: tuple[_Node, ...]
    edges: tuple[_Edge, ...]


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of the graph."""

    id: int
    name: str
    options: dict[int, tuple[Option, ...]]
    """By tensor-parallel degree; the first option is the plain one."""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What one node sends another, by their positions."""

    source: int
    target: int
    num_bytes: float


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a plan."""

    nodes: tuple[int, ...]
    """Positions, ascending."""
    tensor_parallel: int
    replicas: int
    options: tuple[int, ...]
    """For every node the number of its option."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A file's content: the graph and what there is to run it on."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    num_devices: int
    memory_bytes: float
    samples_per_batch: int
    bandwidth_bytes_per_s: float

    def __post_init__(self) -> None:
        for name, least in (("num_devices", 1), ("samples_per_batch", 1), ("memory_bytes", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if not self.bandwidth_bytes_per_s > 0:
            raise ValueError(
                f"bandwidth_bytes_per_s is {self.bandwidth_bytes_per_s}, expected more than 0"
            )

    @cached_property
    def degrees(self) -> tuple[int, ...]:
        """The tensor-parallel degrees that some node has, ascending."""
        return tuple(sorted({degree for node in self.nodes for degree in node.options}))

    def stage_seconds(self, stage: Stage) -> float:
        """Return a stage's time per sample, with its share of the gradient sum: cost model `piper`.

        Source: Tarnawski et al., "Piper: Multidimensional Planner for DNN Parallelization", NeurIPS 2021,
        section 3, as their programme computes it: the sum over the stage's nodes of
        time / d + sum over cut edges of 2 (c + sync) / (d B) + 4 (d - 1) / d * w / (N B).
        """
        chosen = self._chosen(stage)
        d, bandwidth = stage.replicas, self.bandwidth_bytes_per_s
        parts = []
        for option in chosen.values():
            parts.append(option.seconds_per_sample / d)
            gradient_bytes = 4 * (d - 1) / d * option.parameter_bytes
            parts.append(gradient_bytes / self.samples_per_batch / bandwidth)
        for edge in self.edges:
            inside = edge.source in chosen, edge.target in chosen
            if inside == (True, False):
                sync = chosen[edge.source].sync_out_bytes[str(self.nodes[edge.target].id)]
            elif inside == (False, True):
                sync = chosen[edge.target].sync_in_bytes[str(self.nodes[edge.source].id)]
            else:
                continue
            parts.append(2 * (edge.num_bytes + sync) / (d * bandwidth))
        return math.fsum(parts)

    def stage_bytes(self, stage: Stage, replicas_behind: int) -> float:
        """Return the peak memory of each of a stage's devices.

        Args:
            stage: the stage.
            replicas_behind: the sum of the later stages' replicas.
        """
        units = units_in_flight(stage.replicas, replicas_behind)
        return math.fsum(
            option.bytes_per_unit * units + option.fixed_bytes
            for option in self._chosen(stage).values()
        )

    def _chosen(self, stage: Stage) -> dict[int, Option]:
        return {
            node: self.nodes[node].options[stage.tensor_parallel][number]
            for node, number in zip(stage.nodes, stage.options, strict=True)
        }


def units_in_flight(replicas: int, replicas_behind: int) -> int:
    """Return how many micro-batches each replica keeps: those in this and all later stages, shared out."""
    return math.ceil((replicas + replicas_behind) / replicas)


def load_model(path: Path) -> Model:
    """Return a file's content.

    Raises:
        InputError: the file is missing or malformed, an edge names no node or is there twice, a number is
            negative, the synchronised bytes do not list the node's edges, or the graph has a cycle.
    """
    content = decode_json(path, _File)
    position_of: dict[int, int] = {}
    for position, node in enumerate(content.nodes):
        if node.id in position_of:
            raise InputError(f"{path}: node {node.id} is there twice; give each its own id")
        position_of[node.id] = position
    if not content.nodes:
        raise InputError(f"{path}: nodes is empty, expected at least one node")
    edges = []
    for edge in content.edges:
        where = f"{path}: edge {edge.source} -> {edge.target}"
        for end in (edge.source, edge.target):
            if end not in position_of:
                raise InputError(f"{where}: there is no node {end}; name two nodes of the file")
        if edge.num_bytes < 0:
            raise InputError(f"{where}: communicationCost is {edge.num_bytes}, expected at least 0")
        source, target = position_of[edge.source], position_of[edge.target]
        edges.append(Edge(source=source, target=target, num_bytes=edge.num_bytes))
    pairs = [(edge.source, edge.target) for edge in edges]
    if len(set(pairs)) < len(pairs):
        raise InputError(f"{path}: an edge is there twice; give every pair of nodes one edge")
    refuse_cycle(path, [node.id for node in content.nodes], pairs)
    nodes = tuple(_node(path, node, content.edges) for node in content.nodes)
    try:
        return Model(
            nodes=nodes,
            edges=tuple(edges),
            num_devices=content.num_devices,
            memory_bytes=content.memory_bytes,
            samples_per_batch=content.samples_per_batch,
            bandwidth_bytes_per_s=content.bandwidth_bytes_per_s,
        )
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _node(path: Path, node: _Node, edges: Sequence[_Edge]) -> Node:
    before = {str(edge.source) for edge in edges if edge.target == node.id}
    after = {str(edge.target) for edge in edges if edge.source == node.id}
    where = f"{path}: node {node.id}"
    options = {}
    for degree, choices in node.options.items():
        if not degree.isdecimal() or int(degree) < 1 or not choices:
            raise InputError(
                f"{where}: TMPCs has {degree!r} with {len(choices)} options; expected tensor-parallel "
                "degrees from 1 with at least one option each"
            )
        for option in choices:
            _check_option(
                f"{where}: option {option.id!r} at degree {degree}", option, before, after
            )
        options[int(degree)] = choices
    if not options:
        raise InputError(f"{where}: TMPCs is empty, expected at least one tensor-parallel degree")
    return Node(id=node.id, name=node.name, options=options)


def _check_option(where: str, option: Option, before: set[str], after: set[str]) -> None:
    numbers = {
        "timePerSample": option.seconds_per_sample,
        "parameterSize": option.parameter_bytes,
        "memoryUsageA": option.bytes_per_unit,
        "memoryUsageB": option.fixed_bytes,
        "syncTimeFw": min(option.sync_in_bytes.values(), default=0.0),
        "syncTimeBw": min(option.sync_out_bytes.values(), default=0.0),
    }
    for field, value in numbers.items():
        if value < 0:
            raise InputError(f"{where}: {field} is {value}, expected at least 0")
    for field, listed, wanted in (
        ("syncTimeFw", set(option.sync_in_bytes), before),
        ("syncTimeBw", set(option.sync_out_bytes), after),
    ):
        if listed != wanted:
            raise InputError(
                f"{where}: {field} lists nodes {sorted(listed)}, but its edges there are with "
                f"{sorted(wanted)}"
            )
