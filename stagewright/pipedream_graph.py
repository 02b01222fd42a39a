"""PipeDream's graph.txt: one line per layer, then one line per edge.

    node1 -- Input0 -- forward_compute_time=0.000, backward_compute_time=0.000, activation_size=0.0,
        parameter_size=0.000
    node2 -- Linear(4, 2) -- forward_compute_time=1.500, ... [ -- stage_id=0]
    <TAB>node1 -- node2

(the first two are one line each). Times are milliseconds of one micro-batch, sizes are bytes of one
micro-batch. The file names no version, batch size, dtype or device; whoever converts it must know them.
Blank lines and lines that start with # are passed over. Source: the format of the PipeDream profiler,
Narayanan et al., SOSP 2019.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stagewright.document import InputError, read_text, write_atomically

SEPARATOR = " -- "
MAX_BYTES = 2.0**53
"""Below it, every whole number of bytes is exact as a float."""
MOST_NODES = 100_000
"""Of a file that is read; no model has as many layers, and planning would not end."""
_FIELDS = ("forward_compute_time", "backward_compute_time", "activation_size", "parameter_size")
_NUMBER = re.compile(r"(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextNode:
    """One node line."""

    name: str
    """The identifier: "node12"."""
    description: str
    """A module as it prints, or the name of an operation; no constructor is made of it."""
    forward_ms: float
    backward_ms: float
    activation_bytes: float | tuple[float, ...]
    """Of the layer's output; a tuple has one number for each element of a tuple that the layer returns."""
    parameter_bytes: float
    stage: int | None = None
    """None: the graph is not cut into stages."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^\s#]\S*", self.name):
            raise ValueError(
                f"node identifier is {self.name!r}, expected one word that does not start with #"
            )
        if not is_description(self.description):
            raise ValueError(
                f"description is {self.description!r}, expected one line without {SEPARATOR!r}"
            )
        activations = self.activations
        if not activations:
            raise ValueError("activation_bytes is an empty list, expected at least one number")
        for number in (self.forward_ms, self.backward_ms, *activations, self.parameter_bytes):
            if not (math.isfinite(number) and number >= 0):
                raise ValueError(f"found {number}, expected a finite number that is not negative")
        if sum(activations) >= MAX_BYTES or self.parameter_bytes >= MAX_BYTES:
            raise ValueError(f"a size is {MAX_BYTES:g} bytes or more, which no device can hold")
        if self.stage is not None and self.stage < 0:
            raise ValueError(f"stage is {self.stage}, expected 0 or more")

    @property
    def activations(self) -> tuple[float, ...]:
        """The activation bytes as a tuple, also where the file has one number."""
        found = self.activation_bytes
        return found if isinstance(found, tuple) else (found,)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextGraph:
    """A whole file: nodes and edges, each in the file's order."""

    nodes: tuple[TextNode, ...]
    edges: tuple[tuple[str, str], ...]
    """(source, target); the edges into one node are in the order of its arguments, with repeats."""

    def __post_init__(self) -> None:
        names = [node.name for node in self.nodes]
        if not names:
            raise ValueError("there is no node, expected at least one")
        known = set(names)
        if len(known) < len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise ValueError(f"node {twice!r} is there twice; identifiers must be unique")
        for edge in self.edges:
            for name in edge:
                if name not in known:
                    raise ValueError(f"an edge names {name!r}, which is no node")

    def __str__(self) -> str:
        """The canonical text: all nodes, then all edges, with the fewest digits that lose nothing."""
        nodes = (_format_node(node) for node in self.nodes)
        edges = (f"\t{source}{SEPARATOR}{target}" for source, target in self.edges)
        return "".join(f"{line}\n" for line in (*nodes, *edges))

    @classmethod
    def load(cls, path: Path) -> "TextGraph":
        """Return the graph in a file.

        Raises:
            InputError: a line is malformed; the message names the file and the line.
        """
        return parse_graph(read_text(path), str(path))

    def save(self, path: Path) -> None:
        write_atomically(path, str(self).encode())


def is_description(text: str) -> bool:
    """Return whether a text reads back as the description of a node line."""
    return "\n" not in text and (text + SEPARATOR).index(SEPARATOR) == len(text)


def parse_graph(text: str, source: str = "graph.txt") -> TextGraph:
    """Return the graph that a text describes; source names the text in errors.

    Raises:
        InputError: a line is malformed; the message names source and line.
    """
    nodes: dict[str, TextNode] = {}
    edges: list[tuple[str, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            if line.startswith("\t"):
                edges.append(_parse_edge(line, nodes))
                continue
            node = _parse_node(line)
            if node.name in nodes:
                raise ValueError(f"node {node.name!r} is there twice; identifiers must be unique")
            nodes[node.name] = node
            if len(nodes) > MOST_NODES:
                raise ValueError(
                    f"there are more than {MOST_NODES} nodes, expected at most as many; merge layers"
                )
        except ValueError as error:
            raise InputError(f"{source}:{number}: {error}") from None
    if not nodes:
        raise InputError(f"{source}: has no node line, expected at least one: ID -- NAME -- ...")
    return TextGraph(nodes=tuple(nodes.values()), edges=tuple(edges))


def _parse_node(line: str) -> TextNode:
    parts = line.split(SEPARATOR)
    if len(parts) not in (3, 4):
        raise ValueError(
            f"has {len(parts)} parts between {SEPARATOR!r}, expected 3 or 4 (identifier, description, "
            "costs, and stage_id if the graph is cut) or, for an edge, a tab at the start"
        )
    fields = parts[2].split(", ")
    if len(fields) != len(_FIELDS):
        raise ValueError(f"has {len(fields)} costs, expected {len(_FIELDS)}: {', '.join(_FIELDS)}")
    forward, backward, activation, parameter = (
        _value_of(field, name) for field, name in zip(fields, _FIELDS, strict=True)
    )
    stage = None
    if len(parts) == 4:
        word = _value_of(parts[3], "stage_id")
        if not re.fullmatch(r"\d+", word, re.ASCII):
            raise ValueError(f"stage_id is {word!r}, expected a whole number from 0")
        stage = int(word)
    return TextNode(
        name=parts[0],
        description=parts[1],
        forward_ms=_parse_number(forward, _FIELDS[0]),
        backward_ms=_parse_number(backward, _FIELDS[1]),
        activation_bytes=_parse_activation(activation),
        parameter_bytes=_parse_number(parameter, _FIELDS[3]),
        stage=stage,
    )


def _parse_edge(line: str, nodes: Mapping[str, TextNode]) -> tuple[str, str]:
    parts = line[1:].split(SEPARATOR)
    if len(parts) != 2:
        raise ValueError(f"edge is {line!r}, expected a tab and SOURCE{SEPARATOR}TARGET")
    for name in parts:
        if name not in nodes:
            raise ValueError(
                f"edge names {name!r}, which no earlier line describes; nodes come before their edges"
            )
    return parts[0], parts[1]


def _value_of(field: str, name: str) -> str:
    found, equals, value = field.partition("=")
    if found != name or not equals:
        raise ValueError(f"found {field!r} where {name}=... is expected")
    return value


def _parse_activation(text: str) -> float | tuple[float, ...]:
    if text.startswith("[") and text.endswith("]"):
        return tuple(_parse_number(word, _FIELDS[2]) for word in text[1:-1].split("; "))
    return _parse_number(text, _FIELDS[2])


def _parse_number(text: str, name: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{name} is {text!r}, expected a number that is not negative")
    return float(text)


def _format_node(node: TextNode) -> str:
    activation = _format_number(node.activations[0])
    if isinstance(node.activation_bytes, tuple):
        activation = f"[{'; '.join(map(_format_number, node.activation_bytes))}]"
    values = (
        _format_number(node.forward_ms),
        _format_number(node.backward_ms),
        activation,
        _format_number(node.parameter_bytes),
    )
    costs = ", ".join(f"{name}={value}" for name, value in zip(_FIELDS, values, strict=True))
    tail = "" if node.stage is None else f"{SEPARATOR}stage_id={node.stage}"
    return f"{node.name}{SEPARATOR}{node.description}{SEPARATOR}{costs}{tail}"


def _format_number(number: float) -> str:
    """Return three decimals, as PipeDream writes, where they are exact; else as many as it takes."""
    short = f"{abs(number):.3f}"
    return short if float(short) == number else repr(float(number))
