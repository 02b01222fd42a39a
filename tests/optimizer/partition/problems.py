"""Small random partition problems and the brute force that judges the searches."""

import itertools

import numpy as np
from hypothesis import strategies as st

from stagewright.optimizer.partition.problem import PartitionProblem


@st.composite
def partition_problems(
    draw: st.DrawFn, *, path: bool = False, most_devices: int = 3
) -> PartitionProblem:
    num_nodes = draw(st.integers(1, 6))
    num_devices = draw(st.integers(1, min(most_devices, num_nodes)))
    if path:
        order = draw(st.permutations(range(num_nodes)))
        edges = [(a, b) if draw(st.booleans()) else (b, a) for a, b in itertools.pairwise(order)]
    else:
        pairs = list(itertools.permutations(range(num_nodes), 2))
        edges = draw(st.lists(st.sampled_from(pairs), max_size=8)) if pairs else []
    cost = np.zeros((num_devices, num_devices))
    for a, b in itertools.combinations(range(num_devices), 2):
        cost[a, b] = cost[b, a] = draw(st.sampled_from([0.0, 0.5, 1.0, 2.5]))
    weights = draw(st.lists(st.integers(0, 5), min_size=num_nodes, max_size=num_nodes))
    return PartitionProblem(tuple(weights), tuple(edges), cost)


def every_value(problem: PartitionProblem) -> list[float]:
    """Return the finite values of all assignments."""
    every = itertools.product(range(problem.num_devices), repeat=problem.num_nodes)
    values = [problem.value(labels) for labels in every]
    return [value for value in values if np.isfinite(value)]
