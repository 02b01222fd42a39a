"""The interleaved schedule: as fast and as small as Megatron's formula, and for what that leaves out."""

import itertools

import pytest
from hypothesis import given

from stagewright.interleaving import interleaved_schedule, rounds_of, units_allowed_of_all
from stagewright.program import check
from stagewright.schedule import Action, Edge, Pipeline, Schedule, Worker
from stagewright.scheduling import make_schedule

from .random_pipelines import end_of, pipelines, units_held


def dealt(num_ranks: int, per_rank: int, num_microbatches: int, replicas: int = 1) -> Pipeline:
    """Return a chain whose stages are dealt to groups of ranks in turn."""
    count = num_ranks * per_rank
    return Pipeline(
        stages=tuple(
            tuple(Worker((s % num_ranks) * replicas + r, 1) for r in range(replicas))
            for s in range(count)
        ),
        edges=tuple(Edge(s, s + 1) for s in range(count - 1)),
        num_microbatches=num_microbatches,
    )


def megatron(num_ranks: int, per_rank: int, num_microbatches: int) -> Schedule:
    """Return the rows of Megatron-LM's formula, for multiples of num_ranks; Narayanan et al., SC 2021."""
    total = num_microbatches * per_rank
    rows = {}
    for rank in range(num_ranks):

        def stage_and_microbatch(turn: int, rank: int = rank) -> tuple[int, int]:
            group, place = divmod(turn, num_ranks * per_rank)
            part, position = divmod(place, num_ranks)
            return part * num_ranks + rank, group * num_ranks + position

        forwards = [Action(s, "F", m) for s, m in map(stage_and_microbatch, range(total))]
        last = num_ranks * (per_rank - 1) + 2 * rank
        backwards = [Action(last - s, "B", m) for s, m in map(stage_and_microbatch, range(total))]
        warm_up = min(total, 2 * (num_ranks - rank - 1) + (per_rank - 1) * num_ranks)
        steady = itertools.chain.from_iterable(
            zip(forwards[warm_up:], backwards[: total - warm_up], strict=True)
        )
        rows[rank] = (*forwards[:warm_up], *steady, *backwards[total - warm_up :])
    return Schedule(rows)


@pytest.mark.parametrize("num_ranks", [2, 3, 4, 8])
@pytest.mark.parametrize("per_rank", [2, 3, 4])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_it_ends_with_megatrons_and_holds_no_more_units(
    num_ranks: int, per_rank: int, groups: int
) -> None:
    pipeline = dealt(num_ranks, per_rank, num_ranks * groups)
    ours, theirs = interleaved_schedule(pipeline), megatron(num_ranks, per_rank, num_ranks * groups)
    assert end_of(pipeline, ours) == end_of(pipeline, theirs)
    for rank in range(num_ranks):
        assert units_held(ours, rank) <= units_held(theirs, rank)


@pytest.mark.parametrize("num_ranks", [2, 3, 4, 8])
@pytest.mark.parametrize("per_rank", [2, 3, 4])
def test_the_bubble_is_that_of_the_paper_for_any_number_of_micro_batches(
    num_ranks: int, per_rank: int
) -> None:
    """Per rank (P - 1) forwards and backwards of one stage, which is 1 / V of its work per micro-batch."""
    for num_microbatches in range(num_ranks, 3 * num_ranks + 2):
        pipeline = dealt(num_ranks, per_rank, num_microbatches)
        ideal = 3 * num_microbatches * per_rank + 3 * (num_ranks - 1)
        assert end_of(pipeline, interleaved_schedule(pipeline)) == ideal


@pytest.mark.parametrize(("replicas", "num_microbatches"), [(2, 8), (3, 12), (2, 16)])
def test_replicas_share_the_units_of_the_paper(replicas: int, num_microbatches: int) -> None:
    """R replicas on every place with R times the micro-batches do what one does with its own."""
    one, several = (
        dealt(2, 2, num_microbatches // replicas),
        dealt(2, 2, num_microbatches, replicas),
    )
    schedule = interleaved_schedule(several)
    assert end_of(several, schedule) == end_of(one, interleaved_schedule(one))
    allowed = units_allowed_of_all(several)
    assert all(units_held(schedule, rank) <= allowed[rank] for rank in several.ranks)


@given(pipelines(several_stages=False))
def test_with_one_stage_per_rank_it_is_1f1b(pipeline: Pipeline) -> None:
    assert interleaved_schedule(pipeline) == make_schedule("1f1b", pipeline)


@given(pipelines())
def test_any_plan_runs_to_the_end(pipeline: Pipeline) -> None:
    assert len(check(pipeline, interleaved_schedule(pipeline))) == (
        2 * len(pipeline.stages) * pipeline.num_units
    )


@given(pipelines())
def test_rounds_are_even_and_in_order(pipeline: Pipeline) -> None:
    rounds = rounds_of(pipeline)
    sizes = [rounds.count(r) for r in range(rounds[-1] + 1)]
    assert list(rounds) == sorted(rounds)
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == 1 or min(sizes) >= len(pipeline.ranks)
