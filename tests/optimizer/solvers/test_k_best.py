"""The K best plans against all plans, scored one by one and sorted."""

from collections.abc import Callable

import pytest

from stagewright.optimizer.assemble import draft
from stagewright.optimizer.constraints import Constraints
from stagewright.optimizer.costs.cost import Objective
from stagewright.optimizer.costs.evaluate import score
from stagewright.optimizer.costs.tables import StageTables
from stagewright.optimizer.load import Inputs
from stagewright.optimizer.problem import Problem
from stagewright.optimizer.solvers import brute_force, exact
from stagewright.optimizer.solvers.k_best import k_best, signature

RandomInputs = Callable[..., Inputs]

CLUSTERS = (
    [[("fast", 1), ("slow", 2)]],
    [[("slow", 1)], [("slow", 1)], [("fast", 1)]],
    [[("fast", 1), ("slow", 1)], [("slow", 1)]],
)


@pytest.mark.parametrize("objective", ["step-time", "throughput", "latency"])
@pytest.mark.parametrize("seed", range(9))
def test_the_k_best_are_the_first_k_of_all_plans(
    random_inputs: RandomInputs, seed: int, objective: Objective
) -> None:
    memory_bytes = (10**9, 6000, 12000)[seed % 3]
    inputs = random_inputs(seed, 4 if seed % 2 else 3, CLUSTERS[seed % 3], memory_bytes)
    problem = Problem(
        inputs=inputs,
        microbatch_size=2,
        num_microbatches=4,
        objective=objective,
        schedule="forward" if objective == "latency" else "1f1b",
        max_stages=2 if seed % 4 == 0 else None,
        constraints=Constraints(straight=seed % 5 == 4),
    )
    best = exact.solve(problem)
    assert best is not None
    tables = StageTables(problem)
    devices = tuple(len(group.slots) for group in problem.groups)
    values: dict[object, float] = {}
    for choices in brute_force.every_plan(tables, 0, devices):
        found = score(draft(tables, choices), problem)
        if not found.overflows:
            key = signature(problem, choices)
            values[key] = min(found.value_ms, values.get(key, found.value_ms))
    for count in (1, 7, 10_000):
        ranked, is_whole = k_best(problem, best, count)
        assert is_whole
        expected = sorted(values.values())[:count]
        assert [solution.value_ms for solution in ranked] == pytest.approx(expected, rel=1e-8)
        assert len({signature(problem, s.stages) for s in ranked}) == len(ranked)
        assert ranked[0].value_ms == pytest.approx(best.value_ms, rel=1e-8)
        for solution in ranked[:7]:
            rescored = score(draft(tables, solution.stages), problem)
            assert rescored.value_ms == pytest.approx(solution.value_ms, rel=1e-9)
