"""The programme over ideals is judged by brute force over every contiguous assignment."""

import math

import pytest
from hypothesis import given, settings

from stagewright.optimizer.assignment.ideal_program import solve
from stagewright.optimizer.assignment.problem import AssignmentProblem

from .problems import assignment_problems, least_value


@settings(max_examples=60)
@given(assignment_problems())
def test_the_programme_finds_the_best_contiguous_assignment(problem: AssignmentProblem) -> None:
    expected = least_value(problem, contiguous=True)
    found = solve(problem)
    if found is None:
        assert math.isinf(expected)
        return
    assert found.value_ms == pytest.approx(expected, rel=1e-12)
    assert found.bound_ms == found.value_ms
    assert sorted(item for part in found.parts for item in part.items) == list(
        range(len(problem.items))
    )
    place = {item: number for number, part in enumerate(found.parts) for item in part.items}
    assert all(place[before] <= place[after] for before, after in problem.order)
    assert sum(part.kind == "cpu" for part in found.parts) <= problem.num_cpus
    assert sum(part.kind == "accelerator" for part in found.parts) <= problem.num_accelerators
