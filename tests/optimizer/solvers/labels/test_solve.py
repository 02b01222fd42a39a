"""The label solver against every plan: on arrays, and on layer graphs with servers and links."""

import math
import os
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from stagewright.flushless import FLUSHLESS
from stagewright.optimizer.assemble import draft
from stagewright.optimizer.constraints import Constraints
from stagewright.optimizer.costs.cost import IntArray, Objective
from stagewright.optimizer.costs.evaluate import score
from stagewright.optimizer.costs.tables import StageTables
from stagewright.optimizer.flushless import constraints_of
from stagewright.optimizer.load import Inputs
from stagewright.optimizer.problem import Problem, StageChoice
from stagewright.optimizer.solvers.brute_force import every_plan as every_choice
from stagewright.optimizer.solvers.labels import step_time
from stagewright.optimizer.solvers.labels.chain import Chain
from stagewright.optimizer.solvers.labels.found import Found
from stagewright.optimizer.solvers.labels.solve import search, solve
from stagewright.optimizer.solvers.solution import NoneFoundError
from stagewright.scheduling import FORWARD_ONLY

RandomChain = Callable[[int], Chain]
BestValue = Callable[[Chain], float]
PlanValue = Callable[[Chain, Sequence[Sequence[int]]], float]
RandomInputs = Callable[..., Inputs]

CASES = int(os.environ.get("STAGEWRIGHT_FUZZ_EXAMPLES", "100")) * 20
"""2 000, or 100 000 in `make fuzz`."""
BLOCKS = max(20, CASES // 500)
"""Of cases, one test each, so that a long run says how far it came."""


def found_for(chain: Chain, plan_value: PlanValue, seconds: float = math.inf) -> Found:
    """Return what the search finds; its stages hold (first, behind last, type and replicas)."""

    def evaluate(rows: IntArray) -> tuple[float, tuple[StageChoice, ...]] | None:
        stages = tuple(StageChoice(row[0], row[1], (row[2], row[3])) for row in rows.tolist())
        value_ms = plan_value(chain, rows.tolist())
        return None if math.isinf(value_ms) else (value_ms, stages)

    found = Found(evaluate, time.perf_counter() + seconds)
    search(chain, chain, found)
    return found


@pytest.mark.parametrize("block", range(BLOCKS))
def test_no_plan_of_a_random_chain_is_better_than_the_one_proven(
    random_chain: RandomChain, best_value: BestValue, plan_value: PlanValue, block: int
) -> None:
    for seed in range(block * CASES // BLOCKS, (block + 1) * CASES // BLOCKS):
        chain = random_chain(seed)
        best = best_value(chain)
        found = found_for(chain, plan_value)
        assert found.is_infeasible == math.isinf(best), seed
        if found.is_infeasible:
            assert not found.stages, seed
            continue
        assert found.value_ms == pytest.approx(best, rel=1e-8), seed
        assert found.bound_ms == pytest.approx(best, rel=1e-8), seed


CLUSTERS = (
    [[("fast", 1), ("slow", 2)]],
    [[("slow", 3)]],
    [[("fast", 2)], [("slow", 2)]],
    [[("fast", 1), ("slow", 1)], [("slow", 1)]],
)


def problem_of(inputs: Inputs, seed: int, objective: Objective, schedule: str) -> Problem:
    """Return a problem: a third of those of inference are limited by a period, a third hardly."""
    period_ms = (None, 6.0, 25.0)[seed % 3] if objective == "latency" else None
    return Problem(
        inputs=inputs,
        microbatch_size=2,
        num_microbatches=(1 if schedule in FLUSHLESS else 3) + seed % 4,
        objective=objective,
        schedule=schedule,
        overlap="none" if seed % 3 == 0 else "full",
        max_stages=2 if seed % 6 == 0 else None,
        constraints=constraints_of(schedule, Constraints(period_ms=period_ms), inputs.model),
    )


@pytest.mark.parametrize("kind", ["step-time", "throughput", "latency", *FLUSHLESS])
@pytest.mark.parametrize("seed", range(24))
def test_no_plan_with_one_type_per_stage_is_below_the_bound_or_above_the_plan(
    random_inputs: RandomInputs, seed: int, kind: str
) -> None:
    objectives: dict[str, Objective] = {"step-time": "step-time", "latency": "latency"}
    objective = objectives.get(kind, "throughput")
    schedule = "gpipe" if seed % 5 == 0 else "1f1b"
    if kind not in ("step-time", "throughput"):
        schedule = FORWARD_ONLY if kind == "latency" else kind
    memory_bytes = (10**9, 6000, 10**9, 2500, 12000)[seed % 5]
    inputs = random_inputs(seed, 4, CLUSTERS[seed % 4], memory_bytes)
    problem = problem_of(inputs, seed, objective, schedule)
    tables = StageTables(problem)
    free = tuple(len(group.slots) for group in problem.groups)
    best = math.inf
    for choices in every_choice(tables, 0, free):
        if all(len(set(tables.types_of(choice.devices))) == 1 for choice in choices):
            scored = score(draft(tables, choices), problem)
            if not scored.overflows and scored.load_ms <= problem.most_load_ms:
                best = min(best, scored.value_ms)
    # Where nothing is estimated the search ends by itself.
    is_exact = len(problem.all_servers) == 1
    if schedule == "pipedream" and problem.num_devices > problem.num_microbatches:
        is_exact = False
    found = solve(problem, None if is_exact else 2.0)
    if found is None:
        assert math.isinf(best)
        return
    rescored = score(draft(tables, found.stages), problem)
    assert rescored.value_ms == pytest.approx(found.value_ms, rel=1e-9)
    assert not rescored.overflows
    assert rescored.load_ms <= problem.most_load_ms
    assert found.bound_ms <= best * (1 + 1e-9)
    if is_exact:
        assert found.value_ms == pytest.approx(best, rel=1e-8)
        assert found.bound_ms == pytest.approx(best, rel=1e-8)


def test_a_search_without_time_returns_a_plan_and_a_bound_below_it(
    random_chain: RandomChain, best_value: BestValue, plan_value: PlanValue
) -> None:
    for seed in range(20):
        chain = random_chain(seed)
        found = found_for(chain, plan_value, seconds=-1.0)
        best = best_value(chain)
        assert type(found.bound_ms) is float, seed  # Plans are saved with it.
        assert all(type(leaf.bound.threshold_ms) is float for leaf in found.leaves), seed
        if found.stages:
            assert found.bound_ms <= best * (1 + 1e-9) <= found.value_ms * (1 + 2e-9)


def test_a_beam_that_finds_nothing_is_widened_while_there_is_time(
    random_chain: RandomChain,
    best_value: BestValue,
    plan_value: PlanValue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(step_time, "FIRST_BEAM", 1)
    monkeypatch.setattr(step_time, "LEAST_BEAM", 1)
    for seed in (71, 100, 260):
        chain = random_chain(seed)
        at_once = found_for(chain, plan_value, seconds=-1.0)
        assert not at_once.stages and not at_once.is_infeasible
        assert found_for(chain, plan_value).value_ms == pytest.approx(best_value(chain), rel=1e-8)


def test_a_beam_with_little_room_proves_nothing_false(
    random_chain: RandomChain,
    best_value: BestValue,
    plan_value: PlanValue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(step_time, "MOST_ROOM", 20)
    found_one = 0
    for seed in range(60):
        chain = random_chain(seed)
        if not chain.costs.is_step_time:
            continue
        best, found = best_value(chain), found_for(chain, plan_value, seconds=2.0)
        assert not (found.is_infeasible and math.isfinite(best)), seed
        assert found.bound_ms <= best * (1 + 1e-9) and found.value_ms >= best * (1 - 1e-9), seed
        found_one += bool(found.stages)
    assert found_one >= 10


def test_a_search_that_ends_without_a_plan_or_a_proof_says_so(
    random_inputs: RandomInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_small = Problem(
        inputs=random_inputs(1, 4, CLUSTERS[0], 100), microbatch_size=2, num_microbatches=3
    )
    assert solve(too_small, 1.0) is None
    monkeypatch.setattr(step_time.StepTimeSearch, "run", lambda _: None)
    with pytest.raises(NoneFoundError, match=r"within 1 s.* not proven") as raised:
        solve(too_small, 1.0)
    assert "\n" not in str(raised.value)


def test_the_search_does_not_depend_on_anything_but_its_input(
    random_chain: RandomChain, plan_value: PlanValue
) -> None:
    for seed in range(10):
        first, second = (found_for(random_chain(seed), plan_value) for _ in range(2))
        assert (first.stages, first.bound_ms) == (second.stages, second.bound_ms)
        assert np.array_equal(
            [leaf.low_ms for leaf in first.leaves], [leaf.low_ms for leaf in second.leaves]
        )
