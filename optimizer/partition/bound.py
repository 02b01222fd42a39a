"""What no assignment can be better than: the balance of whole weights, and a spanning forest of links."""

import math

from .problem import PartitionProblem


def lower_bound(problem: PartitionProblem) -> float:
    """Return a value that no assignment is below.

    Every device's weight is a multiple of the weights' greatest common divisor, so the squares are least
    where all are as equal as whole multiples allow. The edges of a graph with c connected parts join the k
    devices to at most c groups, so at least the k - c cheapest links of a spanning forest are paid.
    """
    return _least_variance(problem) + _least_links(problem)


def _least_variance(problem: PartitionProblem) -> float:
    unit = math.gcd(*problem.weights)
    if unit == 0:
        return 0.0
    total, num_devices = sum(problem.weights), problem.num_devices
    share, larger = divmod(total // unit, num_devices)
    mean = total / num_devices
    return (
        larger * ((share + 1) * unit - mean) ** 2
        + (num_devices - larger) * (share * unit - mean) ** 2
    )


def _least_links(problem: PartitionProblem) -> float:
    num_components = len(set(_components(problem)))
    costs = [cost for cost, _, _ in cheapest_links(problem)]
    return math.fsum(costs[: max(0, problem.num_devices - num_components)])


def cheapest_links(problem: PartitionProblem) -> list[tuple[float, int, int]]:
    """Return the links (cost, device, device) of a cheapest spanning tree, ascending (Kruskal)."""
    size = problem.num_devices
    links = sorted(
        (float(problem.link_cost[a, b]), a, b) for a in range(size) for b in range(a + 1, size)
    )
    group = list(range(size))
    chosen = []
    for cost, a, b in links:
        if group[a] != group[b]:
            old, new = group[a], group[b]
            group = [new if g == old else g for g in group]
            chosen.append((cost, a, b))
    return chosen


def _components(problem: PartitionProblem) -> list[int]:
    """Return for every node the first node of its connected part."""
    first = [-1] * problem.num_nodes
    for start in range(problem.num_nodes):
        if first[start] >= 0:
            continue
        waiting = [start]
        first[start] = start
        while waiting:
            for neighbour in problem.neighbours[waiting.pop()]:
                if first[neighbour] < 0:
                    first[neighbour] = start
                    waiting.append(neighbour)
    return first
