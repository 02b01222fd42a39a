"""The JSON files of dnn-partitioning (NeurIPS 2020): an operator graph with a time per device kind.

Times have no unit in the file; by their size they are milliseconds, and so they are called here.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec

from stagewright.document import InputError, Record, write_atomically
from stagewright.optimizer.assignment.problem import Kind

from .decode import decode_json, refuse_cycle

COST_TOLERANCE = 1e-6
MOST_NODES = 5_000
"""Beyond, no solver here ends in useful time."""


class _Node(Record):
    id: int
    accelerator_ms: float = msgspec.field(name="fpgaLatency")
    cpu_ms: float = msgspec.field(name="cpuLatency")
    supported: Literal[0, 1] = msgspec.field(name="supportedOnFpga")
    backward: Literal[0, 1] = msgspec.field(name="isBackwardNode")
    colour: int | None = msgspec.field(name="colorClass", default=None)
    size: float = 0.0
    name: str | None = None
    layer: Any = msgspec.field(name="layerId", default=None)


class _Edge(Record):
    source: int = msgspec.field(name="sourceId")
    target: int = msgspec.field(name="destId")
    cost: float
    size: float | None = None


class _File(Record):
    accelerator_bytes: float = msgspec.field(name="maxSizePerFPGA")
    num_accelerators: int = msgspec.field(name="maxFPGAs")
    num_cpus: int = msgspec.field(name="maxCPUs")
    nodes: tuple[_Node, ...]
    edges: tuple[_Edge, ...]


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One node of the graph."""

    id: int
    name: str
    accelerator_ms: float
    cpu_ms: float
    supported: bool
    """Whether an accelerator can run it."""
    backward: bool
    colour: int | None
    """Operators of one colour are on one device."""
    num_bytes: int
    transfer_ms: float
    """Time to move its output between an accelerator and the host's memory; 0 if nothing reads it."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A file's content."""

    operators: tuple[Operator, ...]
    edges: tuple[tuple[int, int], ...]
    """Pairs of positions among the operators."""
    num_accelerators: int
    num_cpus: int
    accelerator_bytes: int

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """For every operator the positions that read its output, ascending."""
        found: list[set[int]] = [set() for _ in self.operators]
        for source, target in self.edges:
            found[source].add(target)
        return tuple(tuple(sorted(targets)) for targets in found)

    def load_ms(self, kind: Kind, held: Iterable[int]) -> float:
        """Return a device's time per sample: cost model `dnn-partitioning`.

        An accelerator pays once for every output that crosses its border, as sender and as receiver; a CPU
        pays for no transfer.

        Args:
            kind: what the device is.
            held: positions of the operators on it.

        Raises:
            ValueError: an operator cannot run there, or they do not fit into memory.

        Source: Tarnawski et al., NeurIPS 2020, section 3.
        """
        inside = set(held)
        own = [self.operators[position] for position in sorted(inside)]
        if kind == "cpu":
            return math.fsum(operator.cpu_ms for operator in own)
        for operator in own:
            if not operator.supported:
                raise ValueError(f"operator {operator.name!r} does not run on an accelerator")
        num_bytes = sum(operator.num_bytes for operator in own)
        if num_bytes > self.accelerator_bytes:
            raise ValueError(
                f"{num_bytes} bytes exceed the {self.accelerator_bytes} of an accelerator"
            )
        crossing = (
            operator.transfer_ms
            for position, operator in enumerate(self.operators)
            if self._crosses(position, inside)
        )
        return math.fsum(operator.accelerator_ms for operator in own) + math.fsum(crossing)

    def _crosses(self, position: int, inside: set[int]) -> bool:
        readers = self.readers[position]
        if position in inside:
            return any(reader not in inside for reader in readers)
        return any(reader in inside for reader in readers)


def load_workload(path: Path) -> Workload:
    """Return a file's content.

    Raises:
        InputError: the file is missing or malformed, an edge names no node, the edges out of a node have
            different costs, or the graph has a cycle.
    """
    content = decode_json(path, _File)
    position_of = _positions(path, content)
    edges, transfer_ms = _edges(path, content, position_of)
    refuse_cycle(path, [node.id for node in content.nodes], edges)
    return Workload(
        operators=tuple(
            Operator(
                id=node.id,
                name=node.name or f"node {node.id}",
                accelerator_ms=node.accelerator_ms,
                cpu_ms=node.cpu_ms,
                supported=bool(node.supported),
                backward=bool(node.backward),
                colour=node.colour,
                num_bytes=math.ceil(node.size),
                transfer_ms=transfer_ms.get(position, 0.0),
            )
            for position, node in enumerate(content.nodes)
        ),
        edges=edges,
        num_accelerators=content.num_accelerators,
        num_cpus=content.num_cpus,
        accelerator_bytes=math.floor(content.accelerator_bytes),
    )


def save_assignment(
    path: Path, workload: Workload, devices: Iterable[tuple[Kind, tuple[int, ...]]]
) -> None:
    """Write devices and their operators (positions) in dnn-partitioning's output format."""
    lists: dict[Kind, list[dict[str, Any]]] = {"accelerator": [], "cpu": []}
    for kind, held in devices:
        ids = [workload.operators[position].id for position in held]
        lists[kind].append({"load": workload.load_ms(kind, held), "nodes": ids})
    slowest = max((entry["load"] for part in lists.values() for entry in part), default=0.0)
    content = {"maxLoad": slowest, "fpgas": lists["accelerator"], "cpus": lists["cpu"]}
    write_atomically(path, msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")


def _positions(path: Path, content: _File) -> dict[int, int]:
    if not content.nodes:
        raise InputError(f"{path}: nodes is empty, expected at least one node")
    if len(content.nodes) > MOST_NODES:
        raise InputError(
            f"{path}: there are {len(content.nodes)} nodes, expected at most {MOST_NODES}; contract the graph"
        )
    if min(content.num_accelerators, content.num_cpus) < 0 or not (
        content.num_accelerators + content.num_cpus
    ):
        raise InputError(
            f"{path}: maxFPGAs is {content.num_accelerators} and maxCPUs {content.num_cpus}; expected no "
            "negative number and at least one device"
        )
    position_of: dict[int, int] = {}
    for position, node in enumerate(content.nodes):
        if node.id in position_of:
            raise InputError(f"{path}: node {node.id} is there twice; give each its own id")
        position_of[node.id] = position
        for field in ("accelerator_ms", "cpu_ms", "size"):
            if getattr(node, field) < 0:
                raise InputError(
                    f"{path}: node {node.id}: {field} is {getattr(node, field)}, expected at least 0"
                )
    return position_of


def _edges(
    path: Path, content: _File, position_of: Mapping[int, int]
) -> tuple[tuple[tuple[int, int], ...], dict[int, float]]:
    """Return the edges by position and the cost of each operator's output."""
    edges = []
    cost_of: dict[int, float] = {}
    for edge in content.edges:
        where = f"{path}: edge {edge.source} -> {edge.target}"
        for end in (edge.source, edge.target):
            if end not in position_of:
                raise InputError(f"{where}: there is no node {end}; name two nodes of the file")
        if edge.cost < 0:
            raise InputError(f"{where}: cost is {edge.cost}, expected at least 0")
        source, target = position_of[edge.source], position_of[edge.target]
        known = cost_of.setdefault(source, edge.cost)
        if abs(known - edge.cost) > COST_TOLERANCE:
            raise InputError(
                f"{where}: cost is {edge.cost}, but another edge out of {edge.source} has {known}; an "
                "output has one cost"
            )
        later = content.nodes[source].backward > content.nodes[target].backward
        if later:
            raise InputError(f"{where}: leads from a backward node to a forward node")
        edges.append((source, target))
    return tuple(edges), cost_of
