"""Solver `local-search`: from random partitions, the best move or exchange of devices until none helps.

Then again and again a random neighbourhood of nodes is put on one device and improved; worse is undone.
It proves nothing; the bound it reports is that of every partition.
"""

from collections.abc import Iterator

import numpy as np

from .bound import lower_bound
from .problem import Floats, Labels, Partition, PartitionProblem
from .trace import Trace

SPACE = "local optima of single moves and exchanges of devices, from random and disturbed starts"
ROUNDING = 1e-9
"""Smaller gains are none."""


def solve(
    problem: PartitionProblem, trace: Trace, *, starts: int, kicks: int, seed: int
) -> Partition:
    """Return the best local optimum of some starts, or of those that the trace's time allows (at least one).

    Args:
        problem: the graph and the devices.
        trace: where improvements are noted.
        starts: random partitions to start from.
        kicks: disturbances of each start's local optimum.
        seed: of all that is random.
    """
    rng = np.random.default_rng(seed)
    bound = lower_bound(problem)
    best: Labels | None = None
    for _ in range(starts):
        for value, labels in local_optima(problem, rng, kicks):
            if trace.record(value):
                best = labels
            if trace.is_over:
                break
        if trace.is_over or trace.best <= bound + ROUNDING:
            break
    assert best is not None
    value = problem.value(best)
    return Partition(tuple(best.tolist()), value, min(value, bound), SPACE)


def local_optima(
    problem: PartitionProblem, rng: np.random.Generator, kicks: int, least_nodes: int = 1
) -> Iterator[tuple[float, Labels]]:
    """Yield (value, labels) of a random start's local optimum, and after every kick the best so far.

    It ends early where the value is proven to be optimal.

    Args:
        problem: the graph and the devices.
        rng: where all that is random comes from.
        kicks: disturbances.
        least_nodes: how many nodes every device has.
    """
    bound = lower_bound(problem)
    labels = improve(problem, random_labels(problem, least_nodes, rng), least_nodes)
    value = problem.value(labels)
    yield value, labels
    for _ in range(kicks):
        if value <= bound + ROUNDING:
            return
        kicked = improve(problem, _disturb(problem, labels, least_nodes, rng), least_nodes)
        if (new := problem.value(kicked)) <= value:
            labels, value = kicked, new
        yield value, labels


def random_labels(problem: PartitionProblem, least_nodes: int, rng: np.random.Generator) -> Labels:
    """Return a random assignment that gives every device at least some nodes."""
    labels = rng.integers(0, problem.num_devices, problem.num_nodes)
    dealt = rng.permutation(problem.num_nodes)[: least_nodes * problem.num_devices]
    labels[dealt] = np.arange(len(dealt)) % problem.num_devices
    return labels


def _disturb(
    problem: PartitionProblem, labels: Labels, least_nodes: int, rng: np.random.Generator
) -> Labels:
    """Return the labels with the nodes around a random one on one device.

    They are unchanged if some device would have too few nodes.
    """
    size = int(rng.integers(1, 2 * problem.num_nodes // problem.num_devices + 1))
    around = [int(rng.integers(problem.num_nodes))]
    for node in around:
        if len(around) >= size:
            break
        around += [other for other in problem.neighbours[node] if other not in around]
    changed = labels.copy()
    changed[around] = labels[rng.choice(around)]
    counts = np.bincount(changed, minlength=problem.num_devices)
    return changed if counts.min() >= least_nodes else labels


def improve(problem: PartitionProblem, labels: Labels, least_nodes: int = 1) -> Labels:
    """Return a local optimum: no move of a node and no exchange of two devices makes it better.

    Args:
        problem: the graph and the devices.
        labels: (nodes,) where to start; every device has at least least_nodes nodes.
        least_nodes: how many nodes every device keeps.
    """
    labels = labels.copy()
    while _move_nodes(problem, labels, least_nodes) or _exchange_devices(problem, labels):
        pass
    return labels


def _move_nodes(problem: PartitionProblem, labels: Labels, least_nodes: int) -> bool:
    """Move nodes, the best gain first, while it helps; return whether any was moved."""
    nodes = np.arange(problem.num_nodes)
    node_weights = np.array(problem.weights, float)
    weights = np.bincount(labels, node_weights, problem.num_devices)
    counts = np.bincount(labels, minlength=problem.num_devices)
    link = _link_costs(problem, labels)
    moved = False
    while True:
        change = 2 * node_weights[:, None] * (
            node_weights[:, None] + weights - weights[labels][:, None]
        ) + (link - link[nodes, labels][:, None])
        change[nodes, labels] = 0.0
        change[counts[labels] <= least_nodes] = np.inf
        node, target = divmod(int(change.argmin()), problem.num_devices)
        if not change[node, target] < -ROUNDING:
            return moved
        moved = True
        source = labels[node]
        labels[node] = target
        weights[[source, target]] += np.array([-1, 1]) * node_weights[node]
        counts[[source, target]] += [-1, 1]
        for neighbour in problem.neighbours[node]:
            link[neighbour] += problem.link_cost[target] - problem.link_cost[source]


def _link_costs(problem: PartitionProblem, labels: Labels) -> Floats:
    """Return the (nodes, devices) cost of each node's edges if it lay on each device."""
    link = np.zeros((problem.num_nodes, problem.num_devices))
    for node, ends in enumerate(problem.neighbours):
        for other in ends:
            link[node] += problem.link_cost[labels[other]]
    return link


def _exchange_devices(problem: PartitionProblem, labels: Labels) -> bool:
    """Exchange the nodes of two devices, the best gain first, while it helps; return whether it did."""
    exchanged = False
    while True:
        edges = np.zeros((problem.num_devices, problem.num_devices))
        for source, target in problem.edges:
            edges[labels[source], labels[target]] += 1
            edges[labels[target], labels[source]] += 1
        np.fill_diagonal(edges, 0.0)
        # as_is[i, j]: what i's edges would cost from j's place.
        as_is = edges @ problem.link_cost
        own = np.diag(as_is)
        change = as_is + as_is.T - own[:, None] - own + 2 * edges * problem.link_cost
        first, second = divmod(int(change.argmin()), problem.num_devices)
        if not change[first, second] < -ROUNDING:
            return exchanged
        exchanged = True
        on_first, on_second = labels == first, labels == second
        labels[on_first], labels[on_second] = second, first
