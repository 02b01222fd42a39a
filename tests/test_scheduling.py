"""Schedules: every unit once, in an order that can run, within the units allowed, and as in the papers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.document import InputError
from stagewright.program import check
from stagewright.schedule import Action, Edge, Kind, Pipeline, Schedule, Worker
from stagewright.scheduling import (
    SCHEDULES,
    forward_schedule,
    make_schedule,
    units_allowed,
    units_held_at_most,
)

from .random_pipelines import end_of


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    """Up to 5 stages of up to 4 replicas; now and then a rank has a second stage."""
    stages: list[tuple[Worker, ...]] = []
    next_rank = 0
    for _ in range(draw(st.integers(1, 5))):
        count = draw(st.integers(1, 4))
        ranks = list(range(next_rank, next_rank + count))
        next_rank += count
        if stages and draw(st.integers(0, 7)) == 0:
            ranks[0] = draw(st.sampled_from([w.rank for workers in stages for w in workers]))
        stages.append(tuple(Worker(rank, draw(st.integers(1, 4))) for rank in ranks))
    count = len(stages)
    edges = [Edge(s, s + 1, draw(st.booleans())) for s in range(count - 1) if draw(st.booleans())]
    skips = [(s, t) for s in range(count) for t in range(s + 2, count)]
    if skips:
        for s, t in draw(st.lists(st.sampled_from(skips), max_size=4, unique=True)):
            edges.append(Edge(s, t, draw(st.booleans())))
    edges = draw(st.permutations(edges))
    return Pipeline(
        stages=tuple(stages), edges=tuple(edges), num_microbatches=draw(st.integers(1, 12))
    )


def chain(*replicas: int, num_microbatches: int) -> Pipeline:
    """Return a chain of stages with so many equal replicas."""
    first = [sum(replicas[:s]) for s in range(len(replicas))]
    return Pipeline(
        stages=tuple(
            tuple(Worker(first[s] + r, 1) for r in range(count)) for s, count in enumerate(replicas)
        ),
        edges=tuple(Edge(s, s + 1) for s in range(len(replicas) - 1)),
        num_microbatches=num_microbatches,
    )


def row(stage: int, text: str) -> tuple[Action, ...]:
    """Return the actions of a picture such as "F0 F1 B0 B1"."""
    return tuple(Action.parse(f"{stage}{word}") for word in text.split())


def parts_of(name: str, pipeline: Pipeline, stage: int) -> tuple[Kind, ...]:
    """Return the actions of one unit: zero-bubble splits the backward where a gradient goes back."""
    goes_back = any(e.carries_gradient for e in pipeline.edges if e.target == stage)
    return ("F", "I", "W") if name == "zero-bubble" and goes_back else ("F", "B")


@pytest.mark.parametrize("name", SCHEDULES)
@given(pipelines())
def test_every_unit_goes_forward_and_backward_once_on_its_rank(
    name: str, pipeline: Pipeline
) -> None:
    schedule = make_schedule(name, pipeline)
    expected = {
        rank: sorted(
            Action(stage, kind, microbatch)
            for stage, route in enumerate(pipeline.routes)
            for microbatch, owner in enumerate(route)
            if owner == rank
            for kind in parts_of(name, pipeline, stage)
        )
        for rank in pipeline.ranks
    }
    assert {rank: sorted(row) for rank, row in schedule.rows.items()} == expected
    check(pipeline, schedule)


@given(pipelines())
def test_an_evaluation_goes_forward_once_and_can_run(pipeline: Pipeline) -> None:
    schedule = forward_schedule(pipeline)
    order = check(pipeline, schedule, forward_only=True)
    assert len(set(order)) == len(order) == len(pipeline.stages) * pipeline.num_microbatches
    assert {action.kind for action in order} == {"F"}


@given(pipelines())
def test_1f1b_holds_no_more_units_than_allowed(pipeline: Pipeline) -> None:
    schedule = make_schedule("1f1b", pipeline)
    for stage, allowed in enumerate(units_allowed(pipeline)):
        for rank, limit in allowed.items():
            assert schedule.units_in_flight(rank, stage) <= limit


@given(pipelines())
def test_zero_bubble_holds_no_more_units_than_the_first_stage_of_1f1b(pipeline: Pipeline) -> None:
    schedule = make_schedule("zero-bubble", pipeline)
    for stage, allowed in enumerate(units_held_at_most(pipeline)):
        for rank, limit in allowed.items():
            assert schedule.units_in_flight(rank, stage) <= limit


def test_zero_bubble_fills_the_bubbles_of_1f1b() -> None:
    """Forward, I and W take one unit of time each: the rows end sooner than 1F1B's (backward two units)."""
    pipeline = chain(1, 1, 1, 1, num_microbatches=8)
    ends = {name: end_of(pipeline, make_schedule(name, pipeline)) for name in SCHEDULES}
    assert ends["1f1b"] == 8 * 3 + 3 * 3
    assert ends["zero-bubble"] < ends["1f1b"]


@given(pipelines())
def test_gpipe_runs_all_forwards_of_a_rank_before_its_backwards(pipeline: Pipeline) -> None:
    for actions in make_schedule("gpipe", pipeline).rows.values():
        text = "".join(action.kind for action in actions)
        assert text == "F" * (len(text) // 2) + "B" * (len(text) // 2)


@pytest.mark.parametrize("name", SCHEDULES)
@given(pipelines())
def test_a_rank_takes_the_micro_batches_of_a_stage_in_order(name: str, pipeline: Pipeline) -> None:
    for actions in make_schedule(name, pipeline).rows.values():
        for stage in range(len(pipeline.stages)):
            for kind in "FBIW":
                taken = [a.microbatch for a in actions if (a.stage, a.kind) == (stage, kind)]
                assert taken == sorted(taken)


def test_1f1b_of_four_stages_is_the_picture_of_the_paper() -> None:
    """Narayanan et al., SC 2021, figure 4, with 8 micro-batches."""
    assert make_schedule("1f1b", chain(1, 1, 1, 1, num_microbatches=8)) == Schedule(
        {
            0: row(0, "F0 F1 F2 F3 B0 F4 B1 F5 B2 F6 B3 F7 B4 B5 B6 B7"),
            1: row(1, "F0 F1 F2 B0 F3 B1 F4 B2 F5 B3 F6 B4 F7 B5 B6 B7"),
            2: row(2, "F0 F1 B0 F2 B1 F3 B2 F4 B3 F5 B4 F6 B5 F7 B6 B7"),
            3: row(3, "F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5 F6 B6 F7 B7"),
        }
    )


def test_gpipe_of_three_stages_is_the_picture_of_the_paper_with_backwards_in_order() -> None:
    """Huang et al., NeurIPS 2019, figure 2c; backwards start with the first micro-batch."""
    everything = "F0 F1 F2 F3 B0 B1 B2 B3"
    assert make_schedule("gpipe", chain(1, 1, 1, num_microbatches=4)) == Schedule(
        {stage: row(stage, everything) for stage in range(3)}
    )


def test_1f1b_of_a_replicated_first_stage_deals_in_turn() -> None:
    """The 2-1 plan of PipeDream, SOSP 2019, figure 8; each of the two replicas holds two units."""
    assert make_schedule("1f1b", chain(2, 1, num_microbatches=6)) == Schedule(
        {
            0: row(0, "F0 F2 B0 F4 B2 B4"),
            1: row(0, "F1 F3 B1 F5 B3 B5"),
            2: row(1, "F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5"),
        }
    )


@pytest.mark.parametrize("replicas", [(1,), (1, 1), (1, 1, 1, 1), (15, 1), (3, 1), (2, 2), (1, 3)])
def test_units_allowed_of_equal_shares_are_pipedreams_count(replicas: tuple[int, ...]) -> None:
    """PipeDream, SOSP 2019, section 3.2: ceil of the replicas from a stage on over its own."""
    allowed = units_allowed(chain(*replicas, num_microbatches=1))
    for stage, count in enumerate(replicas):
        expected = math.ceil(sum(replicas[stage:]) / count)
        assert set(allowed[stage].values()) == {expected}


def test_no_rank_idles_in_the_steady_state_of_a_balanced_chain() -> None:
    """With backwards twice as long as forwards, the last of S stages waits only for the first micro-batch."""
    actions = make_schedule("1f1b", chain(1, 1, 1, num_microbatches=6)).rows[2]
    assert "".join(action.kind for action in actions) == "FB" * 6


def test_replicas_that_finish_together_are_fed_in_turn() -> None:
    stages = ((Worker(0, 1),), (Worker(1, 1), Worker(2, 1)))
    rows = make_schedule("1f1b", Pipeline(stages, (Edge(0, 1),), 6)).rows
    row = " ".join(str(action)[1:] for action in rows[0])
    assert row == "F0 F1 F2 B0 F3 B1 F4 B2 F5 B3 B4 B5"


def test_an_unknown_schedule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="schedule is 'zigzag', expected one of gpipe, 1f1b"):
        make_schedule("zigzag", chain(1, num_microbatches=1))
