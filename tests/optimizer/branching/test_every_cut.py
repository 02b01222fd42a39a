"""Plans over ideals, and bounds for every cut, are judged by scoring every plan over every set of layers."""

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
from stagewright.optimizer.solvers import brute_force, chain_bound, exact
from stagewright.optimizer.solvers.choose import solve_by_labels
from stagewright.optimizer.solvers.constraint_bound import constraint_bound, is_possible
from stagewright.optimizer.solvers.fluid import every_cut_bound

BranchingInputs = Callable[..., Inputs]
EveryCutProblem = Callable[[Problem], Problem]

CLUSTERS = (
    [[("fast", 2)]],
    [[("fast", 1), ("slow", 1)]],
    [[("fast", 1)], [("slow", 2)]],
    [[("fast", 3)]],
)
MEMORY = (10**9, 16_000, 11_000)
"""Ample, and tight for such models."""


def problem_of(
    branching_inputs: BranchingInputs, seed: int, objective: Objective = "step-time"
) -> Problem:
    inputs = branching_inputs(seed, 4 + seed % 2, CLUSTERS[seed % 4], MEMORY[seed % 3])
    return Problem(
        inputs=inputs,
        microbatch_size=2,
        num_microbatches=4,
        objective=objective,
        overlap="none" if seed % 5 == 0 else "full",
        schedule="gpipe" if seed % 7 == 0 else "1f1b",
        constraints=Constraints(straight=seed % 2 == 0),
        cutting="every",
    )


@pytest.mark.parametrize("objective", ["step-time", "throughput", "latency"])
@pytest.mark.parametrize("seed", range(24))
def test_no_plan_over_any_sets_of_layers_is_better_than_the_exact_one(
    branching_inputs: BranchingInputs,
    with_every_subset: EveryCutProblem,
    seed: int,
    objective: Objective,
) -> None:
    problem = problem_of(branching_inputs, seed, objective)
    best, found = brute_force.solve(with_every_subset(problem)), exact.solve(problem)
    assert (best is None) == (found is None)
    if best is None or found is None:
        return
    assert found.value_ms == pytest.approx(best.value_ms, rel=1e-8)
    rescored = score(draft(StageTables(problem), found.stages), problem)
    assert rescored.value_ms == pytest.approx(found.value_ms, rel=1e-9) and not rescored.overflows


@pytest.mark.parametrize("objective", ["step-time", "throughput"])
@pytest.mark.parametrize("seed", [s for s in range(40) if s % 4 in (0, 3)])
def test_labels_over_ideals_find_the_best_plan(
    branching_inputs: BranchingInputs, seed: int, objective: Objective
) -> None:
    problem = problem_of(branching_inputs, seed, objective)
    best, found = exact.solve(problem), solve_by_labels(problem, 5.0)
    assert (best is None) == (found is None)
    if best is not None and found is not None:
        assert found.value_ms == pytest.approx(best.value_ms, rel=1e-8)
        assert found.bound_ms <= best.value_ms * (1 + 1e-9)


@pytest.mark.parametrize("objective", ["step-time", "throughput", "latency"])
@pytest.mark.parametrize("seed", range(40))
def test_the_bound_for_every_cut_is_below_the_best_plan(
    branching_inputs: BranchingInputs, seed: int, objective: Objective
) -> None:
    problem = problem_of(branching_inputs, seed, objective)
    for max_stages in (None, 1, 2):
        limited = replace(problem, max_stages=max_stages)
        best = exact.solve(limited)
        if best is not None:
            bound = every_cut_bound(limited, 2 * best.value_ms, mixes_types=True)
            assert 0 < bound <= best.value_ms


@pytest.mark.parametrize("seed", range(24))
def test_the_bound_for_stages_of_one_type_is_below_their_best_plan(
    branching_inputs: BranchingInputs, seed: int
) -> None:
    objective: Objective = "throughput" if seed % 2 else "step-time"
    problem = problem_of(branching_inputs, seed, objective)
    best = solve_by_labels(problem, 5.0)
    if best is not None:
        bound = every_cut_bound(problem, 2 * best.value_ms, mixes_types=False)
        assert 0 < bound <= best.value_ms


@pytest.mark.parametrize("objective", ["step-time", "throughput"])
@pytest.mark.parametrize("seed", range(40))
def test_the_bound_by_constraints_is_below_the_best_plan_and_close(
    branching_inputs: BranchingInputs, seed: int, objective: Objective
) -> None:
    problem = problem_of(branching_inputs, seed, objective)
    for max_stages in (None, 2):
        limited = replace(problem, max_stages=max_stages)
        best = exact.solve(limited)
        assert is_possible(limited, mixes_types=False)
        if best is not None and is_possible(limited, mixes_types=True):
            bound = constraint_bound(limited, 0.0, 2 * best.value_ms, 60.0)
            assert 0.4 * best.value_ms < bound <= best.value_ms * (1 + 1e-9)


@pytest.mark.parametrize("objective", ["step-time", "throughput"])
@pytest.mark.parametrize("seed", range(40))
def test_the_bound_by_a_chain_is_below_the_best_plan(
    branching_inputs: BranchingInputs,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    objective: Objective,
) -> None:
    monkeypatch.setattr(chain_bound, "MOST_BLOCK", 1.1)
    monkeypatch.setattr(chain_bound, "MOST_SETS", (5, 5000)[seed % 2])
    monkeypatch.setattr(chain_bound, "NUM_CELLS", (3, 120)[seed // 2 % 2])
    cluster, memory_bytes = CLUSTERS[3 * (seed % 2)], MEMORY[seed % 3]
    inputs = branching_inputs(seed, 5 + seed % 4, cluster, memory_bytes)
    problem = replace(problem_of(branching_inputs, seed, objective), inputs=inputs)
    for max_stages in (None, 2):
        limited = replace(problem, max_stages=max_stages)
        best = exact.solve(limited)
        if best is not None:
            assert chain_bound.is_possible(limited, mixes_types=True)
            bound = chain_bound.chain_bound(limited, 0.0, 2 * best.value_ms, 60.0)
            assert 0 < bound <= best.value_ms * (1 + 1e-9)


def test_branching_models_have_better_plans_than_those_of_the_graph_s_order(
    branching_inputs: BranchingInputs,
) -> None:
    better = 0
    for seed in range(12):
        problem = Problem(
            inputs=branching_inputs(seed, 9, CLUSTERS[3], MEMORY[0]),
            microbatch_size=2,
            num_microbatches=8,
            constraints=Constraints(straight=True),
            cutting="every",
        )
        every, ordered = exact.solve(problem), exact.solve(replace(problem, cutting="order"))
        assert every is not None and ordered is not None
        assert every.value_ms <= ordered.value_ms * (1 + 1e-9)
        better += every.value_ms < ordered.value_ms * (1 - 1e-6)
    assert better >= 4
