"""Constraints and objectives of the exact solver against every plan, filtered here and scored one by one."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from stagewright.document import InputError
from stagewright.optimizer.alternatives import fewer_devices
from stagewright.optimizer.assemble import draft, predict
from stagewright.optimizer.constraints import Constraints, Fixed, Place
from stagewright.optimizer.costs.cost import Objective
from stagewright.optimizer.costs.evaluate import Score, score
from stagewright.optimizer.costs.tables import StageTables
from stagewright.optimizer.load import Inputs
from stagewright.optimizer.problem import Problem, StageChoice
from stagewright.optimizer.solvers import brute_force, exact
from stagewright.optimizer.solvers.k_best import k_best
from stagewright.plan import Plan

RandomInputs = Callable[..., Inputs]

CLUSTERS = (
    [[("fast", 1), ("slow", 2)]],
    [[("fast", 1)], [("slow", 2)]],
    [[("fast", 2)], [("slow", 1)]],
    [[("slow", 3)]],
)
PRICES = {"fast": 3.0, "slow": 0.7}


def priced(inputs: Inputs, prices: dict[str, float]) -> Inputs:
    types = {
        kind: device.replace(price_per_hour=prices.get(kind))
        for kind, device in inputs.cluster.device_types.items()
    }
    return replace(inputs, cluster=inputs.cluster.replace(device_types=types))


def make_problem(
    random_inputs: RandomInputs, seed: int, objective: Objective, **limits: object
) -> Problem:
    memory_bytes = (10**9, 6000, 10**9, 12000)[seed % 4]
    inputs = random_inputs(seed, 4 if seed % 2 else 3, CLUSTERS[seed % 4], memory_bytes)
    return Problem(
        inputs=priced(inputs, PRICES),
        microbatch_size=2,
        num_microbatches=3 + seed % 3,
        objective=objective,
        schedule="forward" if objective == "latency" else "1f1b",
        overlap="none" if seed % 5 == 0 else "full",
        max_stages=2 if seed % 6 == 0 else None,
        constraints=Constraints(**limits),  # type: ignore[arg-type]
    )


def every_scored_plan(problem: Problem) -> Iterator[tuple[Plan, Score]]:
    """Yield every plan that fits into memory, whatever the constraints say."""
    free = replace(problem, constraints=Constraints())
    tables = StageTables(free)
    devices = tuple(len(group.slots) for group in free.groups)
    for choices in brute_force.every_plan(tables, 0, devices):
        plan = draft(tables, choices)
        found = score(plan, free)
        if not found.overflows:
            yield plan, found


def hourly(plan: Plan) -> float:
    return sum(PRICES[r.device_type] for stage in plan.stages for r in stage.replicas)


def value_of(problem: Problem, plan: Plan, found: Score) -> float:
    """Return a plan's objective, written out once more."""
    if problem.objective == "cost":
        return found.value_ms / 3.6e6 * hourly(plan) * 1000
    if problem.objective == "latency":
        return found.sum_ms
    return found.load_ms + (found.sum_ms if problem.objective == "step-time" else 0.0)


def exact_value(problem: Problem) -> float:
    """Return the exact solver's value in the same unit; infinite if it finds no plan."""
    found = exact.solve(problem)
    if found is None:
        return math.inf
    assert found.bound_ms == found.value_ms
    return problem.reported_value(found.value_ms, [choice.devices for choice in found.stages])


def assert_best(problem: Problem, keeps: Callable[[Plan, Score], bool]) -> None:
    values = [
        value_of(problem, plan, found)
        for plan, found in every_scored_plan(problem)
        if keeps(plan, found)
    ]
    best = min(values, default=math.inf)
    assert exact_value(problem) == pytest.approx(best, rel=1e-8)
    by_force = brute_force.solve(problem)
    assert (by_force is None) == math.isinf(best)


def _step_within(most_ms: float, plan: Plan, found: Score) -> bool:
    return found.value_ms <= most_ms


def _load_within(most_ms: float, plan: Plan, found: Score) -> bool:
    return found.load_ms <= most_ms


@pytest.mark.parametrize("seed", range(12))
def test_no_plan_has_a_cheaper_step(random_inputs: RandomInputs, seed: int) -> None:
    assert_best(make_problem(random_inputs, seed, "cost"), lambda plan, found: True)


@pytest.mark.parametrize("objective", ["cost", "step-time", "throughput"])
@pytest.mark.parametrize("seed", range(6))
def test_no_plan_within_the_budget_is_better(
    random_inputs: RandomInputs, seed: int, objective: Objective
) -> None:
    budget = (0.8, 1.5, 3.1, 4.0)[seed % 4]
    problem = make_problem(random_inputs, seed, objective, budget_per_hour=budget)
    assert_best(problem, lambda plan, found: hourly(plan) <= budget + 1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2, 4, 5, 6, 8])
def test_no_plan_within_the_deadline_is_cheaper(random_inputs: RandomInputs, seed: int) -> None:
    free = make_problem(random_inputs, seed, "cost")
    fastest = exact.solve(replace(free, objective="step-time"))
    assert fastest is not None
    for factor in (0.9, 1.001, 1.3):
        deadline_ms = fastest.value_ms * factor
        problem = make_problem(random_inputs, seed, "cost", deadline_ms=deadline_ms)
        most_ms = deadline_ms * (1 + 1e-9)
        assert_best(problem, partial(_step_within, most_ms))


@pytest.mark.parametrize("objective", ["step-time", "throughput", "cost", "latency"])
@pytest.mark.parametrize("seed", range(4))
def test_layers_stay_together_and_on_their_type(
    random_inputs: RandomInputs, seed: int, objective: Objective
) -> None:
    kind = "fast" if seed % 4 < 3 else "slow"
    fixed = Fixed(together=(("l0", "l1"),), on=(Place(layers=("l2",), device_type=kind),))
    problem = make_problem(random_inputs, seed, objective, fixed=fixed)

    def keeps(plan: Plan, found: Score) -> bool:
        stages = {name: stage for stage in plan.stages for name in stage.layers}
        types = {replica.device_type for replica in stages["l2"].replicas}
        return stages["l0"] is stages["l1"] and types == {kind}

    assert_best(problem, keeps)


@pytest.mark.parametrize("objective", ["step-time", "throughput"])
@pytest.mark.parametrize("seed", range(4))
def test_straight_plans_have_no_replicas(
    random_inputs: RandomInputs, seed: int, objective: Objective
) -> None:
    problem = make_problem(random_inputs, seed, objective, straight=True)
    assert_best(problem, lambda plan, found: all(len(s.replicas) == 1 for s in plan.stages))


@pytest.mark.parametrize("seed", range(10))
def test_no_plan_under_the_period_has_less_latency(random_inputs: RandomInputs, seed: int) -> None:
    free = make_problem(random_inputs, seed, "latency")
    assert_best(free, lambda plan, found: True)
    for period_ms in (0.5, 2.0, 4.0):
        problem = make_problem(random_inputs, seed, "latency", period_ms=period_ms)
        most_ms = period_ms * problem.num_microbatches * (1 + 1e-12)
        assert_best(problem, partial(_load_within, most_ms))


@pytest.mark.parametrize("seed", [0, 1, 2, 4, 5, 6])
def test_fewer_devices_are_found_if_they_do_as_well(random_inputs: RandomInputs, seed: int) -> None:
    problem = make_problem(random_inputs, seed, "step-time")
    best = exact.solve(problem)
    assert best is not None
    used = sum(sum(choice.devices) for choice in best.stages)
    leanest = min(
        sum(len(stage.replicas) for stage in plan.stages)
        for plan, found in every_scored_plan(problem)
        if found.value_ms < best.value_ms * 1.001
    )
    fewer = fewer_devices(best, problem)
    assert (used if fewer is None else sum(count for *_, count in fewer.devices)) == leanest


def test_a_missing_price_is_named(random_inputs: RandomInputs) -> None:
    inputs = priced(random_inputs(1, 3, CLUSTERS[0], 10**9), {"fast": 1.0})
    problem = Problem(inputs=inputs, microbatch_size=2, num_microbatches=2, objective="cost")
    with pytest.raises(InputError, match="device type 'slow' has no price_per_hour"):
        exact.solve(problem)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('together = [["l0", "l9"]]', "names 'l9', which is no layer that computes"),
        ('on = [{ layers = ["x"], device_type = "fast" }]', "names 'x', which is no layer"),
        (
            'on = [{ layers = ["l0"], device_type = "tpu" }]',
            "device_type is 'tpu', expected one of",
        ),
        ('apart = [["l0"]]', "unknown field `apart`"),
    ],
)
def test_wrong_fixed_layers_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "fix.toml"
    path.write_text(f'format = "stagewright.fix"\nversion = 1\n{text}\n')
    with pytest.raises(InputError, match=message):
        Fixed.load(path).check(path, ["l0", "l1"], ["fast", "slow"])


@pytest.mark.parametrize("objective", ["step-time", "throughput"])
@pytest.mark.parametrize("seed", range(12))
def test_running_forward_again_is_chosen_stage_by_stage_and_never_makes_a_plan_worse(
    random_inputs: RandomInputs, seed: int, objective: Objective
) -> None:
    memory_bytes = (5000, 2500, 9000, 7000)[seed % 4]
    plain = Problem(
        inputs=random_inputs(seed, 3, CLUSTERS[seed % 4], memory_bytes),
        microbatch_size=4,
        num_microbatches=4,
        objective=objective,
        schedule="gpipe" if seed % 3 == 0 else "1f1b",
    )
    problem = replace(plain, constraints=Constraints(allow_recompute=True))
    without, best, found = exact.solve(plain), brute_force.solve(problem), exact.solve(problem)
    assert (best is None) == (found is None)
    if best is None or found is None:
        assert without is None
        return
    assert found.value_ms == pytest.approx(best.value_ms, rel=1e-8)
    assert without is None or found.value_ms <= without.value_ms * (1 + 1e-9)
    rescored = score(draft(StageTables(problem), found.stages), problem)
    assert rescored.value_ms == pytest.approx(found.value_ms, rel=1e-9)
    assert not rescored.overflows
    ranked, _ = k_best(problem, found, 3)
    assert ranked[0].value_ms == pytest.approx(found.value_ms, rel=1e-8)


def test_running_forward_again_needs_less_memory_and_one_more_forward(
    random_inputs: RandomInputs,
) -> None:
    problem = Problem(
        inputs=random_inputs(3, 4, CLUSTERS[3], 10**9),
        microbatch_size=4,
        num_microbatches=4,
        schedule="gpipe",
    )
    tables = StageTables(problem)
    kept, again = (
        predict(draft(tables, [StageChoice(0, 4, (1,), recompute)]), problem)
        for recompute in (False, True)
    )
    (before,), (after,) = kept.score.predictions[0], again.score.predictions[0]
    assert after.backward_ms == pytest.approx(before.backward_ms + before.forward_ms)
    assert after.peak_bytes < before.peak_bytes
    more_ms = again.timeline.step_ms - kept.timeline.step_ms
    assert more_ms == pytest.approx(4 * before.forward_ms)
