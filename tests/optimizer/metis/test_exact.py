"""The proven optimum, against every plan there is."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.optimizer.metis import exact
from stagewright.optimizer.metis.cost import cost_of
from stagewright.optimizer.metis.exact import solve_exactly
from stagewright.optimizer.metis.memory import (
    memory_capacity_mb,
    memory_demand_mb,
    memory_per_layer_mb,
)
from stagewright.optimizer.metis.plan import MetisPlan, defects_of
from stagewright.optimizer.metis.problem import Problem, binary_digits, powers_of_two
from stagewright.optimizer.metis.search import search

from .problems import random_problem, row_problem


def every_plan(problem: Problem) -> Iterator[MetisPlan]:
    """Yield every plan with whole stages that Metis's memory rule and the profiles allow."""
    names = [device.name for device in problem.devices]
    num_layers = problem.settings.num_layers
    for node_sequence in itertools.permutations(names):
        for num_stages in range(1, min(problem.num_devices, num_layers) + 1):
            sizes = powers_of_two(problem.num_devices)
            for groups in itertools.product(sizes, repeat=num_stages):
                if sum(groups) != problem.num_devices:
                    continue
                every_degree = itertools.product(*map(powers_of_two, groups))
                cuts = itertools.combinations(range(1, num_layers), num_stages - 1)
                for degrees, batches, cut in itertools.product(every_degree, problem.batches, cuts):
                    pairs = zip(groups, degrees, strict=True)
                    plan = MetisPlan(
                        node_sequence=node_sequence,
                        device_groups=groups,
                        strategies=tuple((group // degree, degree) for group, degree in pairs),
                        batches=batches,
                        partition=(0, *cut, num_layers),
                        stages_charged=num_stages,
                    )
                    if is_allowed(problem, plan):
                        yield plan


def is_allowed(problem: Problem, plan: MetisPlan) -> bool:
    ranks = problem.span(plan.node_sequence)
    samples = problem.settings.global_batch_size // plan.batches
    for stage in plan.stages(problem):
        strategy = (stage.num_replicas, stage.degree)
        if not problem.is_measured(stage.batch_size) or stage.degree not in problem.degrees:
            return False
        if not stage.span.is_pure(stage.num_replicas):
            return False
        if len(stage.span.types) > 1:
            shares = problem.shares(stage.span, *strategy, samples)
            if any(binary_digits(share)[0] not in problem.batch_sizes for share in shares if share):
                return False
        per_layer = memory_per_layer_mb(problem, ranks, stage.span, strategy, plan.batches)
        asked_mb = memory_demand_mb(per_layer, stage.start, stage.end)
        if asked_mb > memory_capacity_mb(problem, stage.span):
            return False
    return True


@st.composite
def small_problems(draw: st.DrawFn) -> Problem:
    counts = draw(
        st.sampled_from(
            [(1,), (2,), (4,), (1, 1), (2, 1), (2, 2), (3, 1), (1, 3), (1, 1, 2), (4, 2)]
        )
    )
    num_layers = draw(st.integers(1, 4))
    batch_size = draw(st.sampled_from([1, 2, 4, 6]))
    return random_problem(draw(st.integers(0, 10**9)), counts, num_layers, batch_size)


@given(small_problems(), st.booleans())
def test_the_optimum_is_the_cheapest_of_all_plans(problem: Problem, fit_devices: bool) -> None:
    costs = [
        cost_of(problem, plan).total
        for plan in every_plan(problem)
        if not fit_devices or not defects_of(problem, plan)
    ]
    found = solve_exactly(problem, device_memory=fit_devices)
    assert found.proven
    if not costs:
        assert found.best is None and found.bound_ms == math.inf
        return
    assert found.best is not None
    assert found.best.cost_ms == pytest.approx(min(costs), rel=1e-9)
    assert found.bound_ms == found.best.cost_ms
    assert found.best.cost_ms == cost_of(problem, found.best.plan).total
    assert is_allowed(problem, found.best.plan)


@pytest.mark.parametrize(("row", "cost_ms"), [(1, 2303.503), (2, 2321.760)])
def test_the_optimum_of_the_published_rows_is_the_known_one(row: int, cost_ms: float) -> None:
    found = solve_exactly(row_problem(row))
    assert found.proven and found.best is not None
    assert found.best.cost_ms == pytest.approx(cost_ms, abs=1e-3)


@pytest.mark.parametrize("row", [1, 3])
def test_no_executable_plan_of_the_search_is_cheaper_than_the_optimum(row: int) -> None:
    problem = row_problem(row)
    found = solve_exactly(problem)
    fitting = solve_exactly(problem, device_memory=True)
    assert found.best is not None and fitting.best is not None
    assert fitting.proven and not defects_of(problem, fitting.best.plan)
    for ranked in search(problem).plans:
        defects = set(defects_of(problem, ranked.plan))
        if defects <= {"exceeds-memory"}:
            assert found.best.cost_ms <= ranked.cost_ms * (1 + 1e-9)
        if not defects:
            assert fitting.best.cost_ms <= ranked.cost_ms * (1 + 1e-9)


@pytest.mark.parametrize("seconds", [1e-9, 0.02, 0.05, 0.08])
def test_with_little_time_there_is_a_plan_and_an_honest_bound(seconds: float) -> None:
    found = solve_exactly(row_problem(1), time_limit_s=seconds)
    assert found.best is not None
    assert found.bound_ms <= 2303.504 <= found.best.cost_ms + 1e-3
    assert 0 <= found.gap <= 1
    assert found.proven == (found.bound_ms == found.best.cost_ms)


def test_an_interrupt_leaves_the_best_plan_and_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    solve = exact._least_sum

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise KeyboardInterrupt
        return solve(*arguments)

    monkeypatch.setattr(exact, "_least_sum", interrupted)
    found = solve_exactly(row_problem(1))
    assert calls == 20 and found.best is not None and not found.proven
    assert 0 < found.bound_ms <= 2303.504 <= found.best.cost_ms + 1e-3
