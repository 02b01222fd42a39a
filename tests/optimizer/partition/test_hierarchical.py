"""Level by level: every device gets a node, and the 96-device demos reach their proven optima."""

import pytest

from stagewright.optimizer.partition.demo import Matrix, demo
from stagewright.optimizer.partition.hierarchical import solve
from stagewright.optimizer.partition.trace import Trace


@pytest.mark.parametrize(("matrix", "optimum"), [("published", 56.125), ("intended", 94.625)])
def test_every_device_has_nodes_and_nothing_is_below_the_bound(
    matrix: Matrix, optimum: float
) -> None:
    chosen = demo("96", matrix)
    found = solve(chosen.problem, chosen.levels, Trace(), starts=1, kicks=5, seed=0)
    assert len(set(found.labels)) == 96
    assert found.bound == optimum <= found.value == chosen.problem.value(found.labels)


def test_with_kicks_the_published_demo_reaches_its_optimum() -> None:
    chosen = demo("96")
    found = solve(chosen.problem, chosen.levels, Trace(), starts=20, kicks=200, seed=0)
    assert found.value == 56.125
