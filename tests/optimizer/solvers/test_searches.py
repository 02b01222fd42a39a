"""The searches without proof: what they return is a real plan, never better than the optimum, rarely far."""

from collections.abc import Callable
from typing import Literal

import pytest

from stagewright.optimizer.assemble import draft
from stagewright.optimizer.costs.evaluate import score
from stagewright.optimizer.costs.tables import StageTables
from stagewright.optimizer.load import Inputs
from stagewright.optimizer.problem import Problem
from stagewright.optimizer.solvers import exact, hierarchical, local_search

RandomInputs = Callable[..., Inputs]
CLUSTERS = (
    [[("fast", 1), ("slow", 2)]],
    [[("fast", 2)], [("slow", 2)]],
    [[("fast", 1), ("slow", 1)], [("slow", 1)]],
    [[("slow", 3)]],
)


def problems(
    random_inputs: RandomInputs, objective: Literal["step-time", "throughput"]
) -> list[Problem]:
    return [
        Problem(
            inputs=random_inputs(seed, 8, CLUSTERS[seed % 4], (10**9, 15000)[seed % 2]),
            microbatch_size=2,
            num_microbatches=4 + seed % 4,
            objective=objective,
            max_stages=2 if seed % 5 == 0 else None,
        )
        for seed in range(20)
    ]


@pytest.mark.parametrize("objective", ["step-time", "throughput"])
@pytest.mark.parametrize(("solver", "most_apart"), [(local_search, 1.05), (hierarchical, 1.30)])
def test_a_search_finds_real_plans_close_to_the_optimum(
    random_inputs: RandomInputs,
    objective: Literal["step-time", "throughput"],
    solver: Callable[..., None],
    most_apart: float,
) -> None:
    ratios = []
    for problem in problems(random_inputs, objective):
        best = exact.solve(problem)
        found = solver.solve(problem)  # type: ignore[attr-defined]
        if best is None or found is None:
            assert found is None
            continue
        rescored = score(draft(StageTables(problem), found.stages), problem)
        assert rescored.value_ms == pytest.approx(found.value_ms, rel=1e-7)
        assert not rescored.overflows
        assert found.bound_ms <= best.value_ms * (1 + 1e-9)
        assert found.value_ms >= best.value_ms * (1 - 1e-9)
        ratios.append(found.value_ms / best.value_ms)
    assert len(ratios) >= 10
    assert sorted(ratios)[len(ratios) // 2] <= most_apart


def test_the_same_search_twice_gives_the_same_plan(random_inputs: RandomInputs) -> None:
    problem = problems(random_inputs, "step-time")[3]
    assert local_search.solve(problem) == local_search.solve(problem)
    assert hierarchical.solve(problem) == hierarchical.solve(problem)
