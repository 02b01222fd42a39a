"""What one rank executes: its program of a schedule, made ready once for all steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stagewright.program import (
    Instruction,
    Message,
    Receive,
    Send,
    compile_programs,
    messages_from,
    messages_to,
)
from stagewright.schedule import Action, Pipeline, Schedule

ACTIONS_AHEAD = 2
"""How many computations before the one that needs it a receive is posted at least."""


FORWARDS_AHEAD = 16
"""For how many forwards data may be loaded at once."""


@dataclass(frozen=True, slots=True)
class Coming:
    """The forwards of a stage that come next, the first of them maybe now."""

    stage: int
    microbatches: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Around:
    """What one action takes and gives, found once for a program and not in every step."""

    arriving: tuple[Message, ...]
    leaving: tuple[Message, ...]
    confirmed: Mapping[Message, Sequence[Message]]
    """By arriving message: those that this rank had sent before and that its sender must have got by then."""
    coming: Coming | None
    """If it waits for another rank: whose data is loaded before."""


@dataclass(frozen=True)
class RankProgram:
    """What one rank executes."""

    instructions: tuple[Instruction, ...]
    around: Mapping[Action, Around]
    last_stage: int


def rank_program(
    pipeline: Pipeline, schedule: Schedule, rank: int, *, forward_only: bool = False
) -> RankProgram:
    """Return what a rank executes: its program of a schedule, receives posted early.

    Raises:
        InputError: the rows contradict one another (`stagewright.program.check`).
    """
    programs = compile_programs(pipeline, schedule, forward_only=forward_only)
    program, confirmed = programs[rank], _confirmed(pipeline, programs, rank)
    around: dict[Action, Around] = {}
    actions = [item for item in program if isinstance(item, Action)]
    # Stages of one rank that go through the micro-batches apart would drive out one another's data.
    most = FORWARDS_AHEAD if len({action.stage for action in actions}) == 1 else 1
    coming: Coming | None = None
    for action in reversed(actions):
        if action.kind == "F":
            after = coming.microbatches if coming else ()
            microbatches = dict.fromkeys((action.microbatch, *after)[:most])
            coming = Coming(action.stage, tuple(microbatches))
        arriving = tuple(messages_to(pipeline, action))
        waits = any(message.sender != rank for message in arriving)
        leaving = tuple(messages_from(pipeline, action))
        confirming = {message: confirmed[message] for message in arriving if message in confirmed}
        around[action] = Around(arriving, leaving, confirming, coming if waits else None)
    instructions = tuple(_receives_early(program, around))
    return RankProgram(instructions, around, len(pipeline.stages) - 1)


def _confirmed(
    pipeline: Pipeline, programs: Mapping[int, Sequence[Instruction]], rank: int
) -> Mapping[Message, list[Message]]:
    """Return by arriving message what its sender had used of this rank's before it sent the message."""
    found: dict[Message, list[Message]] = {}
    for other, program in programs.items():
        used: list[Message] = []
        for item in program:
            if isinstance(item, Action):
                used += [m for m in messages_to(pipeline, item) if m.sender == rank != other]
            elif isinstance(item, Send) and item.message.receiver == rank and used:
                found[item.message], used = used, []
    return found


def _receives_early(
    program: Sequence[Instruction], around: Mapping[Action, Around]
) -> list[Instruction]:
    """Return a program whose receives stand at least ACTIONS_AHEAD computations before their use.

    To be ready for a message blocks nothing, so this cannot deadlock; but a message that finds its receiver
    ready travels while both ends compute. What a computation made is sent first: others wait for it. The
    order of each channel's receives stays.
    """
    computations = [item for item in program if not isinstance(item, Send | Receive)]
    needed_at = {
        message: place
        for place, item in enumerate(computations)
        if isinstance(item, Action)
        for message in around[item].arriving
    }
    steps: list[list[Instruction]] = [[]]
    """A computation and what is sent after it; nothing in the first."""
    receives: list[tuple[int, Receive]] = []
    """With the step after which each may stand at the latest."""
    for item in program:
        if isinstance(item, Receive):
            latest = min(needed_at[item.message] - ACTIONS_AHEAD, len(steps) - 1)
            receives.append((max(0, latest), item))
            continue
        if not isinstance(item, Send):
            steps.append([])
        steps[-1].append(item)
    next_of: dict[tuple[int, bool], int] = {}
    """By channel: after which step the next receive stands."""
    ready: list[list[Instruction]] = [[] for _ in steps]
    for latest, item in reversed(receives):
        channel = (item.message.sender, item.message.forward)
        next_of[channel] = min(latest, next_of.get(channel, latest))
        ready[next_of[channel]].insert(0, item)
    return [item for pair in zip(steps, ready, strict=True) for part in pair for item in part]
