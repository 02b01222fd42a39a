"""Actions and rows print and parse back; micro-batches are dealt exactly by share."""

import itertools
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.document import InputError
from stagewright.schedule import Action, Edge, Pipeline, Progress, Schedule, Worker
from stagewright.scheduling import SCHEDULES, make_schedule

from .random_pipelines import pipelines

small = st.integers(0, 999)
kinds = st.sampled_from(["F", "B", "I", "W"])
actions = st.builds(Action, small, kinds, small, st.none() | small)
shares = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def dealt(share: list[int], num_microbatches: int) -> tuple[int, ...]:
    """Return the replica of each micro-batch."""
    workers = tuple(Worker(rank, share[rank]) for rank in range(len(share)))
    pipeline = Pipeline(stages=(workers,), edges=(), num_microbatches=num_microbatches)
    return pipeline.routes[0]


@given(actions)
def test_an_action_prints_and_parses_back(action: Action) -> None:
    assert Action.parse(str(action)) == action


def test_actions_print_as_in_the_papers() -> None:
    assert str(Action(2, "F", 0)) == "2F0"
    assert str(Action(12, "W", 7, 3)) == "12W7.3"


@pytest.mark.parametrize(
    "text",
    ["", "F0", "2F", "2X0", "2f0", "-1F0", "2F0.", "2F0 ", "٢F0", "2F0.1.2", "9" * 5000 + "F0"],
)
def test_what_is_no_action_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="action is "):
        Action.parse(text)


@given(st.dictionaries(small, st.lists(actions, max_size=6).map(tuple), max_size=5))
def test_a_schedule_prints_and_parses_back(rows: dict[int, tuple[Action, ...]]) -> None:
    schedule = Schedule(rows)
    assert Schedule.parse(str(schedule)) == schedule


def test_comments_and_blank_lines_in_a_schedule_are_passed_over() -> None:
    text = "# a picture\n\n0: 0F0 0B0\n  # more: of it\n1:\n"
    assert Schedule.parse(text) == Schedule({0: (Action(0, "F", 0), Action(0, "B", 0)), 1: ()})


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("0F0 0B0", "expected a rank, a colon and actions"),
        ("one: 0F0", "expected a rank, a colon and actions"),
        ("0: 0F1", "gives rank 0 a second row"),
        ("1: 0F0 oops", "action is 'oops'"),
    ],
)
def test_a_wrong_line_of_a_schedule_is_named(line: str, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        Schedule.parse(f"0: 0F0\n\n{line}\n")
    assert str(caught.value).startswith("line 3")
    assert problem in str(caught.value)


@given(shares, st.integers(0, 40))
def test_shares_are_exact_over_every_period(share: list[int], start: int) -> None:
    period = sum(share)
    window = dealt(share, start + period)[start:]
    assert [window.count(rank) for rank in range(len(share))] == share


def test_no_prefix_is_a_whole_micro_batch_from_the_fair_share() -> None:
    """For every stage of up to 4 replicas with shares up to 4."""
    for size in range(1, 5):
        for share in itertools.product(range(1, 5), repeat=size):
            period = sum(share)
            route = dealt(list(share), period)
            counts = [0] * size
            for length, rank in enumerate(route, 1):
                counts[rank] += 1
                for replica in range(size):
                    fair = Fraction(length * share[replica], period)
                    assert abs(counts[replica] - fair) < 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9))
def test_no_prefix_gives_a_replica_a_whole_micro_batch_too_much(share: list[int]) -> None:
    """True for any shares: who takes has positive credit. Too little is below the number of others."""
    period = sum(share)
    counts = [0] * len(share)
    for length, rank in enumerate(dealt(share, period), 1):
        counts[rank] += 1
        for replica, count in enumerate(counts):
            error = count - Fraction(length * share[replica], period)
            assert -max(1, len(share) - 1) < error < 1


def test_equal_shares_are_dealt_in_turn_and_unequal_ones_are_spread() -> None:
    assert dealt([1, 1, 1], 7) == (0, 1, 2, 0, 1, 2, 0)
    assert dealt([2, 1], 6) == (0, 1, 0, 0, 1, 0)
    assert dealt([1, 3], 4) == (1, 0, 1, 1) or dealt([1, 3], 4) == (1, 1, 0, 1)


def test_needs_follow_edges_and_gradients_go_back_only_where_they_are() -> None:
    worker = (Worker(0, 1),)
    edges = (Edge(0, 1), Edge(0, 2, carries_gradient=False), Edge(1, 2))
    pipeline = Pipeline(stages=(worker, worker, worker), edges=edges, num_microbatches=1)
    assert list(pipeline.needs(Action(2, "F", 0))) == [Action(0, "F", 0), Action(1, "F", 0)]
    assert list(pipeline.needs(Action(0, "B", 0))) == [
        Action(0, "F", 0),
        (Action(1, "B", 0), Action(1, "I", 0)),
    ]
    assert list(pipeline.needs(Action(1, "W", 0))) == [Action(1, "I", 0)]


def test_units_in_flight_are_counted_from_forward_to_the_end_of_backward() -> None:
    schedule = Schedule.parse("0: 0F0 0F1 0B0 0F2 0B1 0B2\n1: 1F0 1I0 1F1 1I1 1W0 1W1 0F9")
    assert schedule.units_in_flight(0, 0) == 2
    assert schedule.units_in_flight(1, 1) == 2
    assert schedule.units_in_flight(1, 0) == 1


@given(pipelines(most_slices=3), st.randoms(use_true_random=False))
def test_progress_is_needs_made_fast(pipeline: Pipeline, rng: random.Random) -> None:
    every = [
        Action(stage, kind, *unit)
        for stage in range(len(pipeline.stages))
        for kind in ("F", "I", "W")
        for unit in pipeline.units
    ]
    progress, done = Progress(pipeline), set[Action]()
    for action in rng.sample(every, len(every)):
        needs = (need if isinstance(need, tuple) else (need,) for need in pipeline.needs(action))
        ready = all(done.intersection(need) for need in needs)
        place = pipeline.place_of(action.microbatch, action.slice)
        assert progress.is_ready(action.stage, action.kind, place) == ready
        if rng.random() < 0.9:
            progress.add(action)
            done.add(action)


@pytest.mark.parametrize("name", SCHEDULES)
@given(pipeline=pipelines(most_slices=4))
def test_slices_go_forward_in_order_and_backward_reversed(name: str, pipeline: Pipeline) -> None:
    rows = make_schedule(name, pipeline).rows
    for stage, ranks in enumerate(pipeline.routes):
        for microbatch, rank in enumerate(ranks):
            own = [a for a in rows[rank] if (a.stage, a.microbatch) == (stage, microbatch)]
            pieces = [piece for unit, piece in pipeline.units if unit == microbatch]
            assert [a.slice for a in own if a.kind == "F"] == pieces
            assert [a.slice for a in own if a.kind in "BI"] == pieces[::-1]


def test_a_slice_needs_the_ones_before_it_and_its_backward_those_behind() -> None:
    worker = (Worker(0, 1),)
    pipeline = Pipeline(stages=(worker,), edges=(), num_microbatches=1, num_slices=2)
    assert list(pipeline.needs(Action.parse("0F0.1"))) == [Action.parse("0F0.0")]
    assert list(pipeline.needs(Action.parse("0B0.0"))) == [
        Action.parse("0F0.0"),
        (Action.parse("0B0.1"), Action.parse("0I0.1")),
    ]
