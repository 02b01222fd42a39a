"""The bound is judged by every assignment."""

from hypothesis import given, settings

from stagewright.optimizer.partition.bound import lower_bound
from stagewright.optimizer.partition.problem import PartitionProblem

from .problems import every_value, partition_problems


@settings(max_examples=60)
@given(partition_problems())
def test_no_assignment_is_below_the_bound(problem: PartitionProblem) -> None:
    assert lower_bound(problem) <= min(every_value(problem)) + 1e-9
