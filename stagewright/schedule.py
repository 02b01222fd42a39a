"""The schedule: one row of actions per rank. It is data that prints, parses back and can be checked.

The simulator, the tests, the pictures and the runtime read the same rows.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from stagewright.document import InputError

Kind = Literal["F", "B", "I", "W"]
"""Forward; full backward; its two parts: gradient of the inputs, gradient of the weights."""

_ACTION = re.compile(r"(\d{1,9})([FBIW])(\d{1,9})(?:\.(\d{1,9}))?", re.ASCII)


class Unit(NamedTuple):
    """What a stage computes at a time: a micro-batch, or one slice of it."""

    microbatch: int
    slice: int | None = None
    """None: the micro-batch is not cut into token slices."""

    def __str__(self) -> str:
        piece = "" if self.slice is None else f", slice {self.slice}"
        return f"micro-batch {self.microbatch}{piece}"


@dataclass(frozen=True, order=True, slots=True)
class Action:
    """One computation of one unit by one stage."""

    stage: int
    kind: Kind
    microbatch: int
    slice: int | None = None
    """Of the micro-batch, as in Unit."""

    @property
    def unit(self) -> Unit:
        return Unit(self.microbatch, self.slice)

    def __str__(self) -> str:
        tail = "" if self.slice is None else f".{self.slice}"
        return f"{self.stage}{self.kind}{self.microbatch}{tail}"

    @classmethod
    def parse(cls, text: str) -> "Action":
        """Return the action that prints as text: "2F0", "2F0.1".

        Raises:
            InputError: the text is no action.
        """
        match = _ACTION.fullmatch(text)
        if match is None:
            raise InputError(
                f"action is {text!r}, expected stage, one of F B I W, micro-batch, as in 2F0"
            )
        stage, kind, microbatch, piece = match.groups()
        return cls(int(stage), kind, int(microbatch), None if piece is None else int(piece))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Worker:
    """One replica of a stage: its rank and its share of the stage's micro-batches."""

    rank: int
    share: int


class Edge(NamedTuple):
    """One stage sends to a later one, and gets gradients back if carries_gradient."""

    source: int
    target: int
    carries_gradient: bool = True


@dataclass(frozen=True, slots=True)
class Updates:
    """When a run without flush updates (flushless.py)."""

    window: int
    """Micro-batches that an update sums over."""
    is_delayed: bool
    """Whether a window uses the weights after all windows but the one before it, on every stage."""


@dataclass(frozen=True)
class Pipeline:
    """All that a schedule depends on: who runs each stage, which stages exchange messages, how many units."""

    stages: tuple[tuple[Worker, ...], ...]
    edges: tuple[Edge, ...]
    num_microbatches: int
    updates: Updates | None = None
    """None: one update, after all micro-batches (a flush)."""
    num_slices: int = 1
    """Token slices of every micro-batch; a stage runs them forward in order, backward in reversed order."""

    @property
    def num_units(self) -> int:
        return self.num_microbatches * self.num_slices

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """Every unit, in the order of the forwards."""
        if self.num_slices == 1:
            return tuple(map(Unit, range(self.num_microbatches)))
        pairs = itertools.product(range(self.num_microbatches), range(self.num_slices))
        return tuple(Unit(*pair) for pair in pairs)

    def place_of(self, microbatch: int, piece: int | None) -> int:
        """Return a unit's place in `units`."""
        return microbatch * self.num_slices + (piece or 0)

    @cached_property
    def routes(self) -> tuple[tuple[int, ...], ...]:
        """For each stage and micro-batch, the rank that computes it."""
        return tuple(_deal(workers, self.num_microbatches) for workers in self.stages)

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({worker.rank for workers in self.stages for worker in workers}))

    @cached_property
    def sources(self) -> tuple[tuple[Edge, ...], ...]:
        """For each stage, the edges that end there."""
        return tuple(tuple(e for e in self.edges if e.target == s) for s in range(len(self.stages)))

    @cached_property
    def targets(self) -> tuple[tuple[Edge, ...], ...]:
        """For each stage, the edges that start there."""
        return tuple(tuple(e for e in self.edges if e.source == s) for s in range(len(self.stages)))

    def needs(self, action: Action) -> Iterator[Action | tuple[Action, Action]]:
        """Yield the actions that must be done before one; a pair means either of the two (B or I).

        A slice attends to the slices before it: forward needs those, backward those behind it.
        """
        stage, unit = action.stage, action.unit
        if action.kind == "F":
            yield from (Action(edge.source, "F", *unit) for edge in self.sources[stage])
            if action.slice:
                yield Action(stage, "F", action.microbatch, action.slice - 1)
        elif action.kind == "W":
            yield Action(stage, "I", *unit)
        else:
            yield Action(stage, "F", *unit)
            if action.slice is not None and action.slice + 1 < self.num_slices:
                behind = Unit(action.microbatch, action.slice + 1)
                yield (Action(stage, "B", *behind), Action(stage, "I", *behind))
            for edge in self.targets[stage]:
                if edge.carries_gradient:
                    yield (Action(edge.target, "B", *unit), Action(edge.target, "I", *unit))


def _deal(workers: tuple[Worker, ...], num_microbatches: int) -> tuple[int, ...]:
    """Deal micro-batches to replicas in proportion to their shares, as evenly spread as can be.

    Smooth weighted round-robin: each turn every replica gains its share in credit, the richest (the first
    of equals) takes the micro-batch and pays the sum of shares. Periodic with the sum of shares.
    """
    total = sum(worker.share for worker in workers)
    credit = [0] * len(workers)
    ranks: list[int] = []
    if len({worker.share for worker in workers}) == 1:
        # The same in less time: each in turn.
        turns = itertools.cycle(worker.rank for worker in workers)
        return tuple(itertools.islice(turns, num_microbatches))
    for _ in range(min(num_microbatches, total)):
        credit = [owned + worker.share for owned, worker in zip(credit, workers, strict=True)]
        chosen = max(range(len(workers)), key=lambda index: (credit[index], -index))
        credit[chosen] -= total
        ranks.append(workers[chosen].rank)
    return tuple(itertools.islice(itertools.cycle(ranks), num_microbatches))


class Progress:
    """Which actions are done, and so which can start: `Pipeline.needs` made fast."""

    def __init__(self, pipeline: Pipeline) -> None:
        stages, size = range(len(pipeline.stages)), pipeline.num_units
        self._num_slices = pipeline.num_slices
        forward = [bytearray(size) for _ in stages]
        backward = [bytearray(size) for _ in stages]
        split = [bytearray(size) for _ in stages]
        values = [[forward[edge.source] for edge in pipeline.sources[s]] for s in stages]
        gradients = [
            [forward[s], *(backward[e.target] for e in pipeline.targets[s] if e.carries_gradient)]
            for s in stages
        ]
        self._done: dict[Kind, list[list[bytearray]]] = {
            "F": [[column] for column in forward],
            "B": [[column] for column in backward],
            "I": [list(pair) for pair in zip(backward, split, strict=True)],
            "W": [[] for _ in stages],
        }
        """By kind and stage: columns with a place for every unit, which such an action sets."""
        self._needed: dict[Kind, list[list[bytearray]]] = {
            "F": values,
            "B": gradients,
            "I": gradients,
            "W": [[column] for column in split],
        }
        """Those that must be set before it starts."""
        self._neighbours: dict[Kind, list[bytearray]] = {"F": forward, "B": backward, "I": backward}
        """By stage: those whose unit one slice before (forward) or behind (backward) must be set too."""
        self._routes = pipeline.routes
        after = [[edge.target for edge in pipeline.targets[s]] for s in stages]
        before = [[edge.source for edge in pipeline.sources[s]] for s in stages]
        self._served: dict[Kind, list[list[int]]] = {
            "F": after,
            "B": before,
            "I": before,
            "W": [[] for _ in stages],
        }
        """Other stages that may wait for it."""

    def is_ready(self, stage: int, kind: Kind, unit: int) -> bool:
        """Return whether all that an action needs is done; the unit is its place in `Pipeline.units`."""
        ready = all(column[unit] for column in self._needed[kind][stage])
        if self._num_slices == 1 or not ready or kind == "W":
            return ready
        piece = unit % self._num_slices
        if kind == "F":
            return piece == 0 or bool(self._neighbours["F"][stage][unit - 1])
        is_last = piece == self._num_slices - 1
        return is_last or bool(self._neighbours[kind][stage][unit + 1])

    def add(self, action: Action) -> list[int]:
        """Note that an action is done; return the other ranks that may have waited for it."""
        stage, kind, microbatch = action.stage, action.kind, action.microbatch
        unit = microbatch * self._num_slices + (action.slice or 0)
        for column in self._done[kind][stage]:
            column[unit] = 1
        return [self._routes[s][microbatch] for s in self._served[kind][stage]]


@dataclass(frozen=True)
class Schedule:
    """What each rank does, in order."""

    rows: Mapping[int, tuple[Action, ...]]

    def __str__(self) -> str:
        """One line per rank: "0: 0F0 0F1 0B0 0B1"."""
        return "\n".join(
            f"{rank}: {' '.join(map(str, row))}" for rank, row in sorted(self.rows.items())
        )

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """Return the schedule that prints as text; blank lines and lines that start with # are passed over.

        Raises:
            InputError: a line is not "RANK: ACTION ACTION ..."; the message names the line.
        """
        rows: dict[int, tuple[Action, ...]] = {}
        for number, line in enumerate(text.splitlines(), 1):
            head, colon, tail = line.partition(":")
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            if not colon or not re.fullmatch(r"\d{1,9}", head.strip(), re.ASCII):
                raise InputError(
                    f"line {number} is {line!r}, expected a rank, a colon and actions: 0: 0F0 0B0"
                )
            if int(head) in rows:
                raise InputError(
                    f"line {number} gives rank {int(head)} a second row; one row per rank"
                )
            try:
                rows[int(head)] = tuple(Action.parse(word) for word in tail.split())
            except InputError as error:
                raise InputError(f"line {number}: {error}") from None
        return cls(rows)

    def units_in_flight(self, rank: int, stage: int) -> int:
        """Return the most units of a stage that a rank holds between forward and end of backward."""
        held = most = 0
        for action in self.rows[rank]:
            if action.stage == stage:
                held += {"F": 1, "B": -1, "I": 0, "W": -1}[action.kind]
                most = max(most, held)
        return most
