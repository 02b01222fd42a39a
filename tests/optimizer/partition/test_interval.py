"""The exact solution is judged by all intervals in all orders; the demos' optima are the published ones."""

import itertools

import pytest
from hypothesis import given, settings

from stagewright.document import InputError
from stagewright.optimizer.partition.demo import Devices, Matrix, demo
from stagewright.optimizer.partition.interval import path_order, solve
from stagewright.optimizer.partition.problem import PartitionProblem
from stagewright.optimizer.partition.trace import Trace

from .problems import partition_problems


@pytest.mark.parametrize(
    ("devices", "matrix", "optimum"),
    [("3", "published", 2.0), ("96", "published", 56.125), ("96", "intended", 94.625)],
)
def test_the_demos_have_their_proven_optimum(
    devices: Devices, matrix: Matrix, optimum: float
) -> None:
    problem = demo(devices, matrix).problem
    trace = Trace()
    found = solve(problem, trace)
    assert found.value == found.bound == optimum == problem.value(found.labels) == trace.best


@settings(max_examples=50)
@given(partition_problems(path=True, most_devices=4))
def test_no_intervals_in_any_order_are_better(problem: PartitionProblem) -> None:
    path = path_order(problem)
    best = float("inf")
    for cuts in itertools.combinations(range(1, len(path)), problem.num_devices - 1):
        for order in itertools.permutations(range(problem.num_devices)):
            labels = [0] * len(path)
            for place, node in enumerate(path):
                labels[node] = order[sum(cut <= place for cut in cuts)]
            best = min(best, problem.value(labels))
    found = solve(problem, Trace())
    assert found.value == pytest.approx(best)
    assert found.bound <= found.value


@pytest.mark.parametrize("edges", [((0, 1), (0, 2), (0, 3)), ((0, 1), (1, 0), (2, 3)), ((0, 1),)])
def test_a_graph_that_is_no_path_is_refused(edges: tuple[tuple[int, int], ...]) -> None:
    problem = PartitionProblem((1, 1, 1, 1), edges, demo("3").problem.link_cost)
    with pytest.raises(InputError, match="are not one path"):
        solve(problem, Trace())
