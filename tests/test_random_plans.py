"""Random plans, checked without processes: none deadlocks, and every wrong order planted is caught.

A few hundred here; `make fuzz-schedules` takes 100 000 (or STAGEWRIGHT_RANDOM_PLANS of them).
"""

import os
import random
from collections import Counter

import pytest

from stagewright.document import InputError
from stagewright.flushless import FLUSHLESS
from stagewright.program import (
    Channel,
    Instruction,
    Message,
    Receive,
    Send,
    channels_of,
    check,
    compile_programs,
)
from stagewright.runtime.execution.rank_program import rank_program
from stagewright.schedule import Action, Edge, Pipeline, Schedule, Updates, Worker
from stagewright.scheduling import SCHEDULES, make_schedule, units_allowed, units_held_at_most

from .dry_run import blocked, blocked_in_queues
from .random_pipelines import random_pipeline

NUM_PLANS = int(os.environ.get("STAGEWRIGHT_RANDOM_PLANS", "300"))
PARTS = 20
"""The plans are checked in so many tests, which may run beside one another."""
LIMITS = {"1f1b": units_allowed, "zero-bubble": units_held_at_most}
"""The units in flight that the planner counts on; of gpipe all, of interleaved those of its rows."""


def seeds(part: int) -> range:
    return range(part, NUM_PLANS, PARTS)


def random_schedule(rng: random.Random) -> tuple[str, Pipeline]:
    """Return a schedule's name and a pipeline that it can run."""
    name = rng.choice((*SCHEDULES, *FLUSHLESS))
    if name in SCHEDULES:
        return name, random_pipeline(rng, most_slices=3)
    pipeline = random_pipeline(rng, several_stages=False)
    updates = Updates(window=rng.randint(1, 8), is_delayed=name == "pipedream-2bw")
    return name, Pipeline(pipeline.stages, pipeline.edges, pipeline.num_microbatches, updates)


@pytest.mark.parametrize("part", range(PARTS))
def test_no_plan_deadlocks_even_if_every_operation_blocks(part: int) -> None:
    for seed in seeds(part):
        name, pipeline = random_schedule(random.Random(seed))
        schedule = make_schedule(name, pipeline)
        programs = {r: [*p] for r, p in compile_programs(pipeline, schedule).items()}
        demand_equal_orders_at_both_ends(programs)
        assert not blocked(pipeline, programs), (seed, name)
        units = Counter(action for row in schedule.rows.values() for action in row)
        assert set(units.values()) == {1}, (seed, name)
        if name in LIMITS:
            for stage, limits in enumerate(LIMITS[name](pipeline)):
                for rank, limit in limits.items():
                    assert schedule.units_in_flight(rank, stage) <= limit, (seed, name)


def demand_equal_orders_at_both_ends(programs: dict[int, list[Instruction]]) -> None:
    """Sends and receives of a channel must be in the same order, whatever the program around them."""
    sent: dict[tuple[int, int, bool], list[Message]] = {}
    received: dict[tuple[int, int, bool], list[Message]] = {}
    for program in programs.values():
        for item in program:
            if isinstance(item, Send | Receive):
                message = item.message
                ends = sent if isinstance(item, Send) else received
                channel = (message.sender, message.receiver, message.forward)
                ends.setdefault(channel, []).append(message)
    assert sent == received


def channel_of(message: Message) -> Channel:
    return message.sender, message.receiver, message.forward


def ranks_programs(pipeline: Pipeline, schedule: Schedule) -> dict[int, tuple[Instruction, ...]]:
    """Return what the ranks execute: receives are posted early."""
    return {rank: rank_program(pipeline, schedule, rank).instructions for rank in pipeline.ranks}


@pytest.mark.parametrize("part", range(PARTS))
def test_receives_that_are_posted_early_hold_up_nothing_where_a_channel_is_a_queue(
    part: int,
) -> None:
    """NCCL executes what a channel has one after the other, and a receive that waits holds up the rest."""
    for seed in seeds(part)[:10]:
        name, pipeline = random_schedule(random.Random(seed))
        programs = ranks_programs(pipeline, make_schedule(name, pipeline))
        assert not blocked_in_queues(pipeline, programs, channel_of), (seed, name)
        sent = {item.message for p in programs.values() for item in p if isinstance(item, Send)}
        assert {channel_of(message) for message in sent} <= set(channels_of(pipeline))


def test_two_ranks_deadlock_where_both_directions_between_them_are_one_queue() -> None:
    """Why NCCL gets a group for each direction: stages that go to and fro between two ranks."""
    stages = tuple((Worker(stage % 2, 1),) for stage in range(4))
    pipeline = Pipeline(stages, tuple(Edge(s, s + 1) for s in range(3)), 4)
    programs = ranks_programs(pipeline, make_schedule("interleaved", pipeline))
    assert not blocked_in_queues(pipeline, programs, channel_of)
    assert blocked_in_queues(pipeline, programs, lambda message: message.forward)


@pytest.mark.parametrize("part", range(PARTS))
def test_every_wrong_order_planted_is_caught(part: int) -> None:
    planted = 0
    for seed in seeds(part):
        rng = random.Random(seed)
        name, pipeline = random_schedule(rng)
        schedule = make_schedule(name, pipeline)
        for wrong in (
            too_early(rng, pipeline, schedule),
            crossed(rng, pipeline, schedule),
            miscounted(rng, schedule),
        ):
            if wrong is None:
                continue
            planted += 1
            with pytest.raises(InputError):
                check(pipeline, wrong)
    assert planted >= 2 * len(seeds(part))


def moved_before(schedule: Schedule, rank: int, late: Action, early: Action) -> Schedule:
    """Return the rows with one action of a rank taken to right before another."""
    row = [action for action in schedule.rows[rank] if action != late]
    row.insert(row.index(early), late)
    return Schedule({**schedule.rows, rank: tuple(row)})


def needed_by(pipeline: Pipeline, action: Action, present: set[Action]) -> list[Action]:
    """Return the actions of a schedule that one waits for."""
    needs = (need if isinstance(need, tuple) else (need,) for need in pipeline.needs(action))
    return [choice for need in needs for choice in need if choice in present]


def too_early(rng: random.Random, pipeline: Pipeline, schedule: Schedule) -> Schedule | None:
    """Take a backward to before an action of its rank that it needs, perhaps by way of other ranks."""
    present = {action for row in schedule.rows.values() for action in row}
    rank = rng.choice([rank for rank, row in sorted(schedule.rows.items()) if row])
    late = rng.choice([action for action in schedule.rows[rank] if action.kind != "F"])
    behind = {late}
    frontier = [late]
    while frontier:
        for need in needed_by(pipeline, frontier.pop(), present):
            if need not in behind:
                behind.add(need)
                frontier.append(need)
    own = sorted(behind.intersection(schedule.rows[rank]) - {late})
    return moved_before(schedule, rank, late, rng.choice(own)) if own else None


def crossed(rng: random.Random, pipeline: Pipeline, schedule: Schedule) -> Schedule | None:
    """Let two ranks wait for each other, each at an action whose input the other has later in its row."""
    present = {action for row in schedule.rows.values() for action in row}
    owner = {action: rank for rank, row in schedule.rows.items() for action in row}
    waits: dict[tuple[int, int], list[tuple[Action, Action]]] = {}
    for action in sorted(present):
        for need in needed_by(pipeline, action, present):
            if owner[need] != owner[action]:
                waits.setdefault((owner[need], owner[action]), []).append((need, action))
    pairs = [pair for pair in waits if pair[::-1] in waits]
    if not pairs:
        return None
    first, second = rng.choice(sorted(pairs))
    made, waiting = rng.choice(waits[first, second])
    other_made, other_waiting = rng.choice(waits[second, first])
    if other_waiting == made or waiting == other_made:
        return None
    wrong = moved_before(schedule, first, other_waiting, made)
    return moved_before(wrong, second, waiting, other_made)


def miscounted(rng: random.Random, schedule: Schedule) -> Schedule:
    """Leave an action out, run it twice, or give it to another rank."""
    rank = rng.choice([rank for rank, row in sorted(schedule.rows.items()) if row])
    row = list(schedule.rows[rank])
    place = rng.randrange(len(row))
    what = rng.randrange(3)
    if what == 0:
        del row[place]
    elif what == 1:
        row.insert(rng.randint(0, len(row)), row[place])
    else:
        row[place] = Action(row[place].stage + 1, row[place].kind, row[place].microbatch)
    return Schedule({**schedule.rows, rank: tuple(row)})
