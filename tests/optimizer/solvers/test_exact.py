"""The exact solver against every plan, scored one by one."""

from collections.abc import Callable
from typing import Literal

import pytest

from stagewright.optimizer.assemble import draft
from stagewright.optimizer.costs.evaluate import score
from stagewright.optimizer.costs.tables import StageTables
from stagewright.optimizer.load import Inputs
from stagewright.optimizer.problem import Problem
from stagewright.optimizer.solvers import brute_force, choose, exact

RandomInputs = Callable[..., Inputs]

CLUSTERS = (
    [[("fast", 1), ("slow", 2)]],
    [[("fast", 2)], [("slow", 1)]],
    [[("fast", 1), ("slow", 1)], [("slow", 1)]],
    [[("slow", 3)]],
)


@pytest.mark.parametrize("objective", ["step-time", "throughput"])
@pytest.mark.parametrize("seed", range(30))
def test_no_plan_is_better_than_the_exact_solver_s(
    random_inputs: RandomInputs, seed: int, objective: Literal["step-time", "throughput"]
) -> None:
    memory_bytes = (10**9, 6000, 10**9, 2500, 12000)[seed % 5]
    inputs = random_inputs(seed, 4 if seed % 2 else 3, CLUSTERS[seed % 4], memory_bytes)
    problem = Problem(
        inputs=inputs,
        microbatch_size=2,
        num_microbatches=3 + seed % 4,
        objective=objective,
        schedule="gpipe" if seed % 5 == 0 else "1f1b",
        overlap="none" if seed % 7 == 0 else "full",
        max_stages=2 if seed % 6 == 0 else None,
    )
    best, found = brute_force.solve(problem), exact.solve(problem)
    assert (best is None) == (found is None)
    if best is not None and found is not None:
        assert found.value_ms == pytest.approx(best.value_ms, rel=1e-8)
        assert found.bound_ms == found.value_ms
        rescored = score(draft(StageTables(problem), found.stages), problem)
        assert rescored.value_ms == pytest.approx(found.value_ms, rel=1e-9)
        assert not rescored.overflows


def test_a_search_cut_short_returns_no_worse_a_plan_than_labels_find(
    random_inputs: RandomInputs,
) -> None:
    better = 0
    for seed in range(8):
        problem = Problem(
            inputs=random_inputs(seed, 6, [[("fast", 2), ("slow", 3)]], 10**9),
            microbatch_size=2,
            num_microbatches=8,
            objective="throughput",
        )
        best, at_once = exact.solve(problem), exact.solve(problem, 1e-9)
        found = choose.solve(problem, 1e-9)
        assert best is not None and at_once is not None and found is not None
        assert found.bound_ms <= best.value_ms * (1 + 1e-9) <= found.value_ms * (1 + 2e-9)
        assert found.value_ms <= at_once.value_ms
        better += found.value_ms < at_once.value_ms
    assert better
