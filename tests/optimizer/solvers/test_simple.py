"""Simple plans: real plans, and a search that found a worse one returns the better."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from stagewright.optimizer.assemble import draft
from stagewright.optimizer.costs.choices import value_of
from stagewright.optimizer.costs.evaluate import score
from stagewright.optimizer.costs.tables import StageTables
from stagewright.optimizer.load import Inputs
from stagewright.optimizer.problem import Problem, StageChoice
from stagewright.optimizer.solvers import exact
from stagewright.optimizer.solvers.simple import at_least_simple, simple_plans

RandomInputs = Callable[..., Inputs]


def problem_of(random_inputs: RandomInputs, seed: int) -> Problem:
    inputs = random_inputs(seed, 8, [[("fast", 2), ("slow", 3)]], 10**9)
    return Problem(inputs=inputs, microbatch_size=2, num_microbatches=6)


@pytest.mark.parametrize("seed", range(5))
def test_simple_plans_are_plans_that_the_evaluator_prices_alike(
    random_inputs: RandomInputs, seed: int
) -> None:
    tables = StageTables(problem_of(random_inputs, seed))
    for choices in simple_plans(tables):
        assert [c.first for c in choices] == [0, *(c.last for c in choices[:-1])]
        assert choices[-1].last == tables.size
        value_ms = value_of(tables, choices)
        assert value_ms == pytest.approx(score(draft(tables, choices), tables.problem).value_ms)


def test_a_search_never_returns_a_worse_plan_than_a_simple_one(random_inputs: RandomInputs) -> None:
    problem = problem_of(random_inputs, 0)
    tables = StageTables(problem)
    best = exact.solve(problem)
    assert best is not None
    assert at_least_simple(problem, best) == best
    slow = (StageChoice(0, tables.size, (0, 1)),)
    slow_ms = value_of(tables, slow)
    assert slow_ms is not None
    found = at_least_simple(problem, replace(best, stages=slow, value_ms=slow_ms, bound_ms=0.0))
    simple_ms = [value_of(tables, choices) for choices in simple_plans(tables)]
    assert found is not None
    assert found.value_ms == min(ms for ms in simple_ms if ms is not None)
    assert found.value_ms < slow_ms
    assert at_least_simple(problem, None) is None
