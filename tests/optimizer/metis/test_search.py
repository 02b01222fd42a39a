"""Metis's search: its published step counts and the plans that it yields."""

from collections import Counter

import pytest

from stagewright.optimizer.metis.cost import cost_of
from stagewright.optimizer.metis.plan import defects_of
from stagewright.optimizer.metis.search import candidates, search

from .problems import random_problem, row_problem


@pytest.mark.parametrize(
    ("row", "use_strat", "count"),
    [(1, False, 612), (1, True, 562), (2, True, 41208), (3, False, 3734), (3, True, 3482)],
)
def test_step_counts_are_the_published_ones(row: int, use_strat: bool, count: int) -> None:
    assert search(row_problem(row), use_strat).count == count


def test_row_2_without_the_strategy_order_takes_the_published_steps_to_the_known_plans() -> None:
    problem = row_problem(2)
    result = search(problem)
    assert result.count == 58078
    assert len(result.plans) == 14631
    defects = [set(defects_of(problem, ranked.plan)) for ranked in result.plans]
    assert Counter(name for found in defects for name in found - {"exceeds-memory"}) == {
        "stages-not-charged": 8,
        "layers-lost": 3120,
        "empty-stage": 14337,
        "mixed-tensor-parallel": 155,
    }
    assert sum(found <= {"exceeds-memory"} for found in defects) == 282
    assert sum(not found for found in defects) == 251
    clean = (
        r for r, found in zip(result.plans, defects, strict=True) if found <= {"exceeds-memory"}
    )
    assert next(clean).cost_ms == pytest.approx(2347.1168, abs=1e-4)


@pytest.mark.parametrize(
    ("row", "yielded", "clean", "fitting"), [(1, 206, 72, 60), (3, 454, 55, 24)]
)
def test_as_many_plans_are_executable_as_were_counted(
    row: int, yielded: int, clean: int, fitting: int
) -> None:
    problem = row_problem(row)
    plans = search(problem).plans
    defects = [set(defects_of(problem, ranked.plan)) for ranked in plans]
    assert len(plans) == yielded
    assert sum(found <= {"exceeds-memory"} for found in defects) == clean
    assert sum(not found for found in defects) == fitting


@pytest.mark.parametrize(("row", "expected"), [(1, 176), (2, 6560), (3, 320)])
def test_as_many_inter_stage_plans_are_tried_as_in_metis(row: int, expected: int) -> None:
    found = [c for c in candidates(row_problem(row)) if c.stages_charged == len(c.groups)]
    single = sum(len(c.groups) == 1 for c in found)
    assert len(found) + single == expected  # the single stage is tried for the first order only


def test_the_best_executable_plan_of_row_1_is_the_known_one() -> None:
    problem = row_problem(1)
    plans = search(problem).plans
    best = next(ranked for ranked in plans if not defects_of(problem, ranked.plan))
    assert best.cost_ms == pytest.approx(2371.4582386016846, rel=1e-9)
    assert best.plan.partition == (0, 3, 10)


@pytest.mark.parametrize("counts", [(3,), (3, 2), (4, 8), (1, 2, 3)])
def test_any_number_of_devices_can_be_searched_and_plans_are_sorted(
    counts: tuple[int, ...],
) -> None:
    """Metis crashes unless the number is a power of two."""
    problem = random_problem(5, counts, 6, 8)
    plans = search(problem).plans
    costs = [ranked.cost_ms for ranked in plans]
    assert costs == sorted(costs)
    for ranked in plans[:5]:
        assert cost_of(problem, ranked.plan).total == ranked.cost_ms
        assert sum(ranked.plan.device_groups) == sum(counts)
