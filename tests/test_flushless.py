"""Schedules without flush: no deadlock with updates that all replicas take together, and bounded versions."""

import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.document import InputError
from stagewright.flushless import (
    FLUSHLESS,
    Update,
    unit_versions,
    versions_allowed,
    versions_held,
    without_flush,
)
from stagewright.program import check, compile_programs
from stagewright.schedule import Action, Edge, Pipeline, Schedule, Updates, Worker
from stagewright.scheduling import make_schedule, units_allowed

from .dry_run import blocked


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    """Up to 4 stages of up to 4 replicas on ranks of their own, any edges, windows of any size."""
    count = draw(st.integers(1, 4))
    stages: list[tuple[Worker, ...]] = []
    first = 0
    for _ in range(count):
        replicas = draw(st.integers(1, 4))
        stages.append(tuple(Worker(first + r, draw(st.integers(1, 4))) for r in range(replicas)))
        first += replicas
    pairs = [(s, t) for s in range(count) for t in range(s + 1, count)]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    edges = tuple(Edge(s, t, draw(st.booleans())) for s, t in chosen)
    return Pipeline(
        stages=tuple(stages),
        edges=edges,
        num_microbatches=draw(st.integers(1, 24)),
        updates=Updates(window=draw(st.integers(1, 8)), is_delayed=draw(st.booleans())),
    )


def name_of(pipeline: Pipeline) -> str:
    assert pipeline.updates is not None
    return FLUSHLESS[pipeline.updates.is_delayed]


def schedule_of(pipeline: Pipeline) -> Schedule:
    return make_schedule(name_of(pipeline), pipeline)


def chain(*replicas: int, num_microbatches: int, window: int, name: str) -> Pipeline:
    first = [sum(replicas[:s]) for s in range(len(replicas))]
    pipeline = Pipeline(
        stages=tuple(
            tuple(Worker(first[s] + r, 1) for r in range(count)) for s, count in enumerate(replicas)
        ),
        edges=tuple(Edge(s, s + 1) for s in range(len(replicas) - 1)),
        num_microbatches=num_microbatches,
    )
    return without_flush(name, pipeline, window)


@given(pipelines())
def test_programs_run_to_the_end_even_if_every_operation_blocks(pipeline: Pipeline) -> None:
    programs = compile_programs(pipeline, schedule_of(pipeline))
    assert not blocked(pipeline, {rank: list(program) for rank, program in programs.items()})


@given(pipelines())
def test_a_stage_updates_after_its_last_backward_of_a_window_on_every_replica(
    pipeline: Pipeline,
) -> None:
    assert pipeline.updates is not None
    window = pipeline.updates.window
    num_windows = -(-pipeline.num_microbatches // window)
    for program in compile_programs(pipeline, schedule_of(pipeline)).values():
        updates = [item for item in program if isinstance(item, Update)]
        assert [update.window for update in updates] == list(range(num_windows))
        passed = 0
        for item in program:
            if isinstance(item, Update):
                passed += 1
            elif isinstance(item, Action) and item.kind == "B":
                assert item.microbatch // window == passed


@given(pipelines())
def test_every_unit_goes_forward_and_backward_once_within_the_units_allowed(
    pipeline: Pipeline,
) -> None:
    schedule = schedule_of(pipeline)
    counts = Counter(check(pipeline, schedule))
    assert set(counts.values()) == {1}
    assert len(counts) == 2 * len(pipeline.stages) * pipeline.num_microbatches
    for stage, allowed in enumerate(units_allowed(pipeline)):
        for rank, limit in allowed.items():
            assert schedule.units_in_flight(rank, stage) <= limit


@given(pipelines())
def test_no_rank_holds_more_versions_than_allowed(pipeline: Pipeline) -> None:
    """Counted by hand: at each point, the newest version and all that a later backward still uses."""
    assert pipeline.updates is not None
    programs = compile_programs(pipeline, schedule_of(pipeline))
    allowed = versions_allowed(name_of(pipeline), pipeline, units_allowed(pipeline))
    for workers, limits in zip(pipeline.stages, allowed, strict=True):
        for worker in workers:
            program = programs[worker.rank]
            versions = unit_versions(pipeline.updates, program)
            most = newest = 0
            for position, item in enumerate(program):
                newest += isinstance(item, Update)
                later = {
                    versions[action.microbatch]
                    for action in program[position + 1 :]
                    if isinstance(action, Action) and action.kind == "B"
                }
                most = max(most, len({v for v in later if v <= newest} | {newest}))
            assert versions_held(pipeline.updates, program) == max(most, 1)
            assert most <= limits[worker.rank]


@given(pipelines())
def test_a_unit_uses_a_version_that_exists_when_it_goes_forward(pipeline: Pipeline) -> None:
    assert pipeline.updates is not None
    for program in compile_programs(pipeline, schedule_of(pipeline)).values():
        versions = unit_versions(pipeline.updates, program)
        passed = 0
        for item in program:
            if isinstance(item, Update):
                passed += 1
            elif isinstance(item, Action) and item.kind == "F":
                window = item.microbatch // pipeline.updates.window
                delayed = pipeline.updates.is_delayed
                assert versions[item.microbatch] == (max(0, window - 1) if delayed else passed)
                assert passed >= versions[item.microbatch]


def test_versions_of_a_chain_are_those_of_the_paper() -> None:
    """PipeDream, SOSP 2019, section 3.3: with an update per micro-batch, stage s of S is S - 1 - s behind."""
    pipeline = chain(1, 1, 1, 1, num_microbatches=12, window=1, name="pipedream")
    assert pipeline.updates is not None
    programs = compile_programs(pipeline, make_schedule("pipedream", pipeline))
    for stage in range(4):
        versions = unit_versions(pipeline.updates, programs[stage])
        assert versions == {m: max(0, m - (3 - stage)) for m in range(12)}
        assert versions_held(pipeline.updates, programs[stage]) == 4 - stage


def test_two_versions_are_enough_for_2bw_whatever_the_depth() -> None:
    pipeline = chain(2, 1, 1, 1, num_microbatches=32, window=4, name="pipedream-2bw")
    assert pipeline.updates is not None
    for program in compile_programs(pipeline, make_schedule("pipedream-2bw", pipeline)).values():
        assert versions_held(pipeline.updates, program) == 2


@pytest.mark.parametrize("name", FLUSHLESS)
def test_without_replicas_and_with_long_windows_the_rows_are_those_of_1f1b(name: str) -> None:
    pipeline = chain(1, 1, 1, num_microbatches=20, window=4, name=name)
    assert make_schedule(name, pipeline) == make_schedule("1f1b", pipeline)


@pytest.mark.parametrize("name", FLUSHLESS)
def test_without_updates_given_there_is_one_at_the_end(name: str) -> None:
    pipeline = dataclasses.replace(
        chain(2, 1, num_microbatches=6, window=1, name=name), updates=None
    )
    assert make_schedule(name, pipeline) == make_schedule("1f1b", pipeline)


def test_a_forward_that_needs_another_replicas_window_first_is_refused() -> None:
    """Stage 0's first replica has no backward left in window 0, so it waits for the second one."""
    pipeline = chain(2, 1, num_microbatches=4, window=2, name="pipedream")
    wrong = Schedule.parse(
        "0: 0F0 0B0 0F2 0B2\n1: 0F1 0B1 0F3 0B3\n2: 1F0 1B0 1F1 1F2 1B1 1B2 1F3 1B3"
    )
    with pytest.raises(InputError, match="rank 0 waits at 0F2 for an update of its stage"):
        check(pipeline, wrong)
    check(dataclasses.replace(pipeline, updates=None), wrong)


def test_a_rank_with_several_stages_is_refused() -> None:
    pipeline = Pipeline(((Worker(0, 1),), (Worker(0, 1),)), (Edge(0, 1),), 4)
    with pytest.raises(InputError, match="pipedream runs one stage on each rank, but rank 0 has 2"):
        make_schedule("pipedream", pipeline)
