"""The objective, worked by hand, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagewright.optimizer.partition.problem import PartitionProblem

from .problems import partition_problems

APART = 1.0 - np.eye(2)


def test_the_value_is_squared_distances_plus_directed_edges_between_devices() -> None:
    problem = PartitionProblem((1, 2, 3), ((0, 1), (1, 0), (1, 2), (0, 2)), 0.5 * APART)
    assert problem.value([0, 0, 1]) == 0.0 + 2 * 0.5
    assert problem.value([0, 1, 1]) == 2 * 2.0**2 + 3 * 0.5


def test_a_device_without_nodes_has_no_value() -> None:
    assert PartitionProblem((1, 1), (), APART).value([1, 1]) == float("inf")


def test_an_induced_problem_keeps_the_edges_among_its_nodes() -> None:
    problem = PartitionProblem((1, 2, 3), ((0, 1), (2, 1), (0, 2)), APART)
    inner = problem.induced([1, 2], np.zeros((1, 1)))
    assert inner.weights == (2, 3) and inner.edges == ((1, 0),)


@settings(max_examples=30)
@given(partition_problems(), st.data())
def test_renaming_devices_and_their_links_changes_no_value(
    problem: PartitionProblem, data: st.DataObject
) -> None:
    size = problem.num_devices
    labels = data.draw(
        st.lists(st.integers(0, size - 1), min_size=problem.num_nodes, max_size=problem.num_nodes)
    )
    names = np.array(data.draw(st.permutations(range(size))))
    cost = np.zeros((size, size))
    cost[np.ix_(names, names)] = problem.link_cost
    renamed = PartitionProblem(problem.weights, problem.edges, cost)
    assert renamed.value(names[labels]) == pytest.approx(problem.value(labels))


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (np.array([[0.0, 1.0], [2.0, 0.0]]), "symmetric"),
        (np.zeros((2, 3)), "symmetric"),
        (np.eye(2), "diagonal"),
        (-APART, "negative"),
        (1.0 - np.eye(4), "3 nodes for 4 devices"),
    ],
)
def test_a_wrong_matrix_is_refused(cost: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PartitionProblem((1, 1, 1), (), cost)
