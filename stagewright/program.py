"""A schedule with its messages: each rank's computations, sends and receives, without deadlock.

The rows of all ranks are played once with every message taking no time. That gives one order of all
computations and messages of the run; each rank's program lists its part of that order. A send and its
receive are one event of the order, so even if every operation blocked, the first unfinished event could
always proceed: all its participants have finished everything before it.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from stagewright.document import InputError
from stagewright.flushless import Rounds, Update
from stagewright.schedule import Action, Edge, Pipeline, Progress, Schedule, Unit

GRADIENTS_UNDERWAY = 2
"""Messages of gradients per border that a rank has on their way at most: nothing comes back that would tell
of their arrival, so their memory stays until the sender waits for it."""


class Message(NamedTuple):
    """The values (forward) or the gradients (backward) of one border for one unit.

    Messages are looked up between computations, where a hash made in Python costs much; so they are tuples.
    """

    edge: Edge
    microbatch: int
    forward: bool
    sender: int
    """Rank."""
    receiver: int
    slice: int | None = None

    @property
    def unit(self) -> Unit:
        return Unit(self.microbatch, self.slice)

    def __str__(self) -> str:
        what = "values" if self.forward else "gradients"
        first, second = self.edge.source, self.edge.target
        if not self.forward:
            first, second = second, first
        return (
            f"{what} of {self.unit} from stage {first} (rank {self.sender}) "
            f"to stage {second} (rank {self.receiver})"
        )


Channel = tuple[int, int, bool]
"""Sender, receiver, and whether its messages go forward: one after the other, first in first out."""


def channels_of(pipeline: Pipeline) -> list[Channel]:
    """Return every channel that a run of any number of micro-batches may use, in an order for all ranks."""
    found = set()
    for edge in pipeline.edges:
        for source in pipeline.stages[edge.source]:
            for target in pipeline.stages[edge.target]:
                if source.rank != target.rank:
                    found.add((source.rank, target.rank, True))
                    if edge.carries_gradient:
                        found.add((target.rank, source.rank, False))
    return sorted(found)


@dataclass(frozen=True, slots=True)
class Send:
    """Start sending a message; the computation that makes it is done."""

    message: Message


@dataclass(frozen=True, slots=True)
class Receive:
    """Be ready to receive a message."""

    message: Message


Instruction = Action | Send | Receive | Update


def messages_from(pipeline: Pipeline, action: Action) -> list[Message]:
    """Return what an action sends when it is done, to other ranks and to its own."""
    if action.kind == "F":
        return [_message(pipeline, edge, action, True) for edge in pipeline.targets[action.stage]]
    if action.kind == "W":
        return []
    edges = (edge for edge in pipeline.sources[action.stage] if edge.carries_gradient)
    return [_message(pipeline, edge, action, False) for edge in edges]


def messages_to(pipeline: Pipeline, action: Action) -> list[Message]:
    """Return what an action must have received before it starts, from other ranks and from its own."""
    if action.kind == "F":
        return [_message(pipeline, edge, action, True) for edge in pipeline.sources[action.stage]]
    if action.kind == "W":
        return []
    edges = (edge for edge in pipeline.targets[action.stage] if edge.carries_gradient)
    return [_message(pipeline, edge, action, False) for edge in edges]


def _message(pipeline: Pipeline, edge: Edge, action: Action, forward: bool) -> Message:
    ends = [pipeline.routes[stage][action.microbatch] for stage in (edge.source, edge.target)]
    sender, receiver = ends if forward else reversed(ends)
    return Message(edge, action.microbatch, forward, sender, receiver, action.slice)


def check(pipeline: Pipeline, schedule: Schedule, *, forward_only: bool = False) -> list[Action]:
    """Return one order of all actions in which each comes after what it needs.

    In a pipeline with updates, an action also waits for those that its row has before it (flushless.py).

    Raises:
        InputError: an action is missing, doubled, of no stage or on a rank that the plan does not give it,
            or the rows wait for one another; the message names the actions, each with what it lacks.
    """
    order = order_with_updates(pipeline, schedule, forward_only=forward_only)
    return [item for item in order if isinstance(item, Action)]


def order_with_updates(
    pipeline: Pipeline, schedule: Schedule, *, forward_only: bool = False
) -> list[Action | Update]:
    """Return the order of `check` with the updates of a pipeline that has some; raises what it does."""
    _check_presence(pipeline, schedule, forward_only)
    waiting = {rank: deque(row) for rank, row in schedule.rows.items()}
    progress, num_slices = Progress(pipeline), pipeline.num_slices
    rounds = Rounds(pipeline) if pipeline.updates and not forward_only else None
    order: list[Action | Update] = []
    candidates = set(waiting)
    while candidates:
        started = []
        for rank in sorted(candidates):
            row = waiting[rank]
            if not row:
                continue
            head = row[0]
            unit = head.microbatch * num_slices + (head.slice or 0)
            if not progress.is_ready(head.stage, head.kind, unit):
                continue
            if rounds is None or rounds.may_start(rank, head):
                started.append((rank, row.popleft()))
        # Only these ranks can have got what they wait for.
        candidates = set()
        for rank, action in started:
            candidates.add(rank)
            candidates.update(progress.add(action))
            order.append(action)
            for update in rounds.add(rank, action) if rounds else ():
                candidates.update(worker.rank for worker in pipeline.stages[update.stage])
                order.append(update)
    if any(waiting.values()):
        done = {item for item in order if isinstance(item, Action)}
        stuck = "; ".join(
            f"rank {rank} waits at {row[0]} for {_lacking(pipeline, row[0], done)}"
            for rank, row in sorted(waiting.items())
            if row
        )
        raise InputError(f"the schedule deadlocks: {stuck}; reorder the rows\n{schedule}")
    return order


def compile_programs(
    pipeline: Pipeline, schedule: Schedule, *, forward_only: bool = False
) -> Mapping[int, tuple[Instruction, ...]]:
    """Return each rank's program. Values that stay on a rank are no messages.

    Raises:
        InputError: as `check` does.
    """
    programs: dict[int, list[Instruction]] = {rank: [] for rank in schedule.rows}
    for action in order_with_updates(pipeline, schedule, forward_only=forward_only):
        if isinstance(action, Update):
            for worker in pipeline.stages[action.stage]:
                programs[worker.rank].append(action)
            continue
        programs[pipeline.routes[action.stage][action.microbatch]].append(action)
        for message in messages_from(pipeline, action):
            if message.sender != message.receiver:
                programs[message.sender].append(Send(message))
                programs[message.receiver].append(Receive(message))
    return {rank: tuple(program) for rank, program in programs.items()}


def _check_presence(pipeline: Pipeline, schedule: Schedule, forward_only: bool) -> None:
    if set(schedule.rows) != set(pipeline.ranks):
        raise InputError(
            f"the schedule has rows for ranks {sorted(schedule.rows)}, expected {pipeline.ranks}"
        )
    counts: dict[str, list[list[int]]] = {
        kind: [[0] * pipeline.num_units for _ in pipeline.stages] for kind in "FBIW"
    }
    routes = pipeline.routes
    for rank, row in schedule.rows.items():
        for action in row:
            stage, microbatch = action.stage, action.microbatch
            known = stage < len(routes) and microbatch < pipeline.num_microbatches
            known = known and (action.slice is None) == (pipeline.num_slices == 1)
            known = known and (action.slice or 0) < pipeline.num_slices
            if not known or routes[stage][microbatch] != rank:
                raise InputError(
                    f"rank {rank} has action {action}, which the plan does not give it"
                )
            counts[action.kind][stage][pipeline.place_of(microbatch, action.slice)] += 1
    complete = {(1, 0, 0, 0)} if forward_only else {(1, 1, 0, 0), (1, 0, 1, 1)}
    for stage in range(len(routes)):
        of_kinds = (counts[kind][stage] for kind in "FBIW")
        for unit, found in zip(pipeline.units, zip(*of_kinds, strict=True), strict=True):
            if found not in complete:
                raise InputError(
                    f"stage {stage} has (F, B, I, W) = {found} for {unit}, expected "
                    f"one of {sorted(complete)}: each unit once forward and once backward\n{schedule}"
                )


def _lacking(pipeline: Pipeline, action: Action, done: set[Action]) -> str:
    """Return the first thing that an action needs and that is not done, as text."""
    for need in pipeline.needs(action):
        choices = need if isinstance(need, tuple) else (need,)
        if not any(choice in done for choice in choices):
            return " or ".join(map(str, choices))
    return "an update of its stage"
