"""The cut branches lose nothing: every assignment is looked at beside it."""

import pytest
from hypothesis import given, settings

from stagewright.optimizer.partition.brute_force import solve
from stagewright.optimizer.partition.demo import demo
from stagewright.optimizer.partition.problem import PartitionProblem
from stagewright.optimizer.partition.trace import Trace

from .problems import every_value, partition_problems


@settings(max_examples=60)
@given(partition_problems())
def test_brute_force_finds_the_best_of_all_assignments(problem: PartitionProblem) -> None:
    trace = Trace()
    found = solve(problem, trace)
    assert found.value == pytest.approx(min(every_value(problem)))
    assert found.value == problem.value(found.labels) == found.bound == trace.best


def test_brute_force_proves_two_cut_edges_on_three_devices() -> None:
    trace = Trace()
    found = solve(demo("3").problem, trace)
    assert found.value == found.bound == 2.0
    assert trace.improvements[0][1] == 104546.0


def test_when_the_time_is_over_the_best_so_far_and_a_bound_are_returned() -> None:
    found = solve(demo("96").problem, Trace(seconds_limit=0.0))
    assert found.bound == 56.125 <= found.value < float("inf")
