"""Solver `exact`: intervals of a path, one per device.

On a path every border between two intervals cuts one edge, wherever it lies. So the intervals that balance
the weights best (a dynamic programme) and the order of the devices that is cheapest to walk are found apart.
A partition whose value equals the lower bound over all partitions (bound.py) is optimal among all of them.
"""

import itertools

import numpy as np

from stagewright.document import InputError

from .bound import cheapest_links, lower_bound
from .problem import Partition, PartitionProblem
from .trace import Trace

MOST_DEVICES_IN_ALL_ORDERS = 8
SPACE = "intervals of the path, one per device; the bound is over all assignments"


def solve(problem: PartitionProblem, trace: Trace) -> Partition:
    """Return the best assignment of intervals.

    Raises:
        InputError: the graph is no path.
    """
    path = path_order(problem)
    cuts = _balanced_cuts([problem.weights[node] for node in path], problem.num_devices)
    labels = [0] * problem.num_nodes
    for device, start, end in zip(
        _cheapest_order(problem), [0, *cuts], [*cuts, len(path)], strict=True
    ):
        for node in path[start:end]:
            labels[node] = device
    value = problem.value(labels)
    trace.record(value)
    return Partition(tuple(labels), value, min(value, lower_bound(problem)), SPACE)


def path_order(problem: PartitionProblem) -> list[int]:
    """Return the nodes of a graph that, without directions, is one path, from its smaller end.

    Raises:
        InputError: it is no path.
    """
    degrees = [len(ends) for ends in problem.neighbours]
    ends = [node for node, degree in enumerate(degrees) if degree <= 1]
    order = ends[:1]
    seen = set(order)
    while order:
        onward = [node for node in problem.neighbours[order[-1]] if node not in seen]
        if len(onward) != 1:
            break
        order.append(onward[0])
        seen.add(onward[0])
    if len(order) < problem.num_nodes or len(problem.edges) != problem.num_nodes - 1:
        raise InputError(
            f"solver exact: the graph's {problem.num_nodes} nodes and {len(problem.edges)} edges are not one "
            "path; use local-search, hierarchical or brute-force"
        )
    return order


def _balanced_cuts(weights: list[int], num_parts: int) -> list[int]:
    """Return the starts of intervals 1, 2, ... that have the least sum of squared distances from the mean."""
    ends = np.concatenate([[0], np.cumsum(weights)]).astype(float)
    size = len(weights) + 1
    lengths = ends - ends[:, None]
    square = np.where(
        np.arange(size) > np.arange(size)[:, None], (lengths - ends[-1] / num_parts) ** 2, np.inf
    )
    best = np.where(np.arange(size) == 0, 0.0, np.inf)
    starts = []
    for _ in range(num_parts):
        value = best[:, None] + square
        starts.append(value.argmin(axis=0))
        best = value.min(axis=0)
    cuts = [len(weights)]
    for start in reversed(starts[1:]):
        cuts.append(int(start[cuts[-1]]))
    return cuts[:0:-1]


def _cheapest_order(problem: PartitionProblem) -> tuple[int, ...]:
    """Return an order of the devices with a low sum of link costs from each to the next.

    It is the least for few devices. Beyond that, groups are joined along a cheapest spanning tree; where
    devices nest in levels, that is the least as well.
    """
    cost, size = problem.link_cost, problem.num_devices

    def walk(order: tuple[int, ...]) -> float:
        return float(sum(cost[a, b] for a, b in itertools.pairwise(order)))

    if size <= MOST_DEVICES_IN_ALL_ORDERS:
        return min(itertools.permutations(range(size)), key=walk)
    chains: dict[int, tuple[int, ...]] = {device: (device,) for device in range(size)}
    for _, a, b in cheapest_links(problem):
        first, second = chains[a], chains[b]
        joined = min(
            (x + y for x in (first, first[::-1]) for y in (second, second[::-1])), key=walk
        )
        for device in joined:
            chains[device] = joined
    return chains[0]
