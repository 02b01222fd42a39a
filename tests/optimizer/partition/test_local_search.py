"""Local search never beats brute force, never makes a partition worse, and repeats itself by its seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagewright.optimizer.partition.demo import demo
from stagewright.optimizer.partition.local_search import improve, random_labels, solve
from stagewright.optimizer.partition.problem import PartitionProblem
from stagewright.optimizer.partition.trace import Trace

from .problems import every_value, partition_problems


@settings(max_examples=40)
@given(partition_problems(), st.integers(0, 1000))
def test_a_local_optimum_is_no_worse_than_its_start_and_than_its_neighbours(
    problem: PartitionProblem, seed: int
) -> None:
    start = random_labels(problem, 1, np.random.default_rng(seed))
    found = improve(problem, start)
    value = problem.value(found)
    assert min(every_value(problem)) - 1e-9 <= value <= problem.value(start) + 1e-9
    for node in range(problem.num_nodes):
        for device in range(problem.num_devices):
            moved = found.copy()
            moved[node] = device
            assert problem.value(moved) >= value - 1e-6
    for first in range(problem.num_devices):
        for second in range(first):
            names = np.arange(problem.num_devices)
            names[[first, second]] = second, first
            assert problem.value(names[found]) >= value - 1e-6


def test_the_same_seed_gives_the_same_partition() -> None:
    problem = demo("96").problem
    runs = [solve(problem, Trace(), starts=2, kicks=2, seed=5) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0].value == problem.value(runs[0].labels)


def test_three_devices_are_solved_to_the_proven_optimum() -> None:
    trace = Trace()
    found = solve(demo("3").problem, trace, starts=20, kicks=200, seed=0)
    assert found.value == found.bound == 2.0
    values = [value for _, value in trace.improvements]
    assert values == sorted(values, reverse=True) and values[-1] == 2.0


@pytest.mark.parametrize("least_nodes", [1, 2, 4])
def test_random_labels_give_every_device_its_nodes(least_nodes: int) -> None:
    problem = PartitionProblem((1,) * 12, (), 1.0 - np.eye(3))
    labels = random_labels(problem, least_nodes, np.random.default_rng(0))
    assert np.bincount(labels, minlength=3).min() >= least_nodes
