"""Money and recomputation at scale: the label solver against every plan with one type per stage."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from stagewright.optimizer.assemble import draft
from stagewright.optimizer.constraints import Constraints
from stagewright.optimizer.costs.cost import Objective
from stagewright.optimizer.costs.evaluate import score
from stagewright.optimizer.costs.tables import StageTables
from stagewright.optimizer.load import Inputs
from stagewright.optimizer.problem import Problem
from stagewright.optimizer.solvers.brute_force import every_plan
from stagewright.optimizer.solvers.choose import solve_by_labels

RandomInputs = Callable[..., Inputs]

CLUSTERS = (
    [[("fast", 1), ("slow", 2)]],
    [[("slow", 3)]],
    [[("fast", 1), ("slow", 1)], [("slow", 1)]],
)

PRICES = {"fast": 1.5, "slow": 0.7}


def best_value(problem: Problem) -> float:
    """Return the least reported value of all plans with one type per stage that keep the constraints."""
    tables = StageTables(problem)
    free = tuple(len(group.slots) for group in problem.groups)
    deadline_ms, best = problem.constraints.deadline_ms or math.inf, math.inf
    for choices in every_plan(tables, 0, free):
        devices = [choice.devices for choice in choices]
        if any(len(set(tables.types_of(own))) > 1 for own in devices):
            continue
        if not problem.may_use(tuple(map(sum, zip(*devices, strict=True)))):
            continue
        scored = score(draft(tables, choices), problem)
        if not scored.overflows and scored.value_ms <= deadline_ms:
            best = min(best, problem.reported_value(scored.value_ms, devices))
    return best


def assert_best(problem: Problem) -> None:
    # Where servers make no difference the search ends by itself.
    limit_s = None if len(problem.all_servers) == 1 else 5.0
    best, found = best_value(problem), solve_by_labels(problem, limit_s)
    if found is None:
        assert math.isinf(best)
        return
    devices = [choice.devices for choice in found.stages]
    value = problem.reported_value(found.value_ms, devices)
    bound = problem.reported_value(found.bound_ms, devices)
    rescored = score(draft(StageTables(problem), found.stages), problem)
    assert rescored.value_ms == pytest.approx(found.value_ms, rel=1e-9)
    assert not rescored.overflows
    assert problem.may_use(tuple(map(sum, zip(*devices, strict=True))))
    assert bound <= best * (1 + 1e-8) <= value * (1 + 2e-8)
    if len(problem.all_servers) == 1:
        assert value == pytest.approx(best, rel=1e-7)
        assert bound == pytest.approx(best, rel=1e-5)


def problem_of(
    random_inputs: RandomInputs, seed: int, objective: Objective, constraints: Constraints
) -> Problem:
    inputs = random_inputs(seed, 3, CLUSTERS[seed % 3], (10**9, 5000, 2500, 9000)[seed % 4])
    types = {
        kind: device.replace(price_per_hour=PRICES[kind])
        for kind, device in inputs.cluster.device_types.items()
    }
    return Problem(
        inputs=replace(inputs, cluster=inputs.cluster.replace(device_types=types)),
        microbatch_size=4,
        num_microbatches=3 + seed % 3,
        objective=objective,
        schedule="gpipe" if seed % 5 == 0 else "1f1b",
        constraints=constraints,
    )


@pytest.mark.parametrize("objective", ["step-time", "throughput"])
@pytest.mark.parametrize("seed", range(9))
def test_running_forward_again_is_chosen_stage_by_stage(
    random_inputs: RandomInputs, seed: int, objective: Objective
) -> None:
    assert_best(problem_of(random_inputs, seed, objective, Constraints(allow_recompute=True)))


@pytest.mark.parametrize("objective", ["cost", "step-time", "throughput"])
@pytest.mark.parametrize("seed", range(8))
def test_no_plan_within_the_budget_is_better(
    random_inputs: RandomInputs, seed: int, objective: Objective
) -> None:
    limits = Constraints(budget_per_hour=(0.8, 1.5, 3.1, 4.0)[seed % 4])
    assert_best(problem_of(random_inputs, seed, objective, limits))


@pytest.mark.parametrize("seed", range(9))
def test_no_plan_is_cheaper(random_inputs: RandomInputs, seed: int) -> None:
    assert_best(problem_of(random_inputs, seed, "cost", Constraints()))


@pytest.mark.parametrize("seed", range(9))
def test_no_plan_within_the_deadline_is_cheaper(random_inputs: RandomInputs, seed: int) -> None:
    free = problem_of(random_inputs, seed, "step-time", Constraints())
    fastest = solve_by_labels(free, 3.0)
    deadline_ms = None if fastest is None else fastest.value_ms * (0.9, 1.001, 1.3)[seed % 3]
    limits = Constraints(deadline_ms=deadline_ms)
    assert_best(problem_of(random_inputs, seed, "cost", limits))
