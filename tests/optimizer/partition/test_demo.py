"""The demos' graph and matrices are what their publication says."""

import numpy as np

from stagewright.optimizer.partition.demo import demo


def test_the_graph_is_two_chains_that_meet_at_node_100() -> None:
    problem = demo("3").problem
    assert problem.num_nodes == 201 and len(problem.edges) == 200
    assert sorted(problem.neighbours[100]) == [99, 200] and problem.neighbours[101] == (102,)
    assert set(problem.weights) == {2}


def test_the_published_matrix_has_48_pairs_without_cost_and_one_half_elsewhere() -> None:
    cost = demo("96").problem.link_cost
    upper = cost[np.triu_indices(96, 1)]
    assert np.unique(upper, return_counts=True)[0].tolist() == [0.0, 0.5]
    assert (upper == 0).sum() == 48


def test_the_intended_matrix_counts_the_levels_at_which_two_devices_are_apart() -> None:
    cost = demo("96", "intended").problem.link_cost
    assert np.unique(cost).tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert [cost[0, other] for other in (1, 4, 16, 48)] == [0.5, 1.0, 1.5, 2.0]
    values, counts = np.unique(cost[0], return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {
        0.0: 1, 0.5: 3, 1.0: 12, 1.5: 32, 2.0: 48
    }  # fmt: skip
