"""Solver `hierarchical`: local search between the blocks of the highest level, then inside each block.

The cost between two blocks is the mean over their devices. Every block gets at least a node per device.
"""

import math
from collections.abc import Sequence

import numpy as np

from .bound import lower_bound
from .local_search import ROUNDING, local_optima
from .problem import Floats, Labels, Partition, PartitionProblem
from .trace import Trace

SPACE = "local optima level by level, from random starts"


def solve(
    problem: PartitionProblem,
    levels: Sequence[int],
    trace: Trace,
    *,
    starts: int,
    kicks: int,
    seed: int,
) -> Partition:
    """Return the best partition of some runs, or of those that the trace's time allows (at least one).

    Args:
        problem: the graph and the devices.
        levels: how many blocks each level has inside one of the level above; their product is the devices.
        trace: where improvements are noted.
        starts: runs.
        kicks: disturbances in the local search of every block.
        seed: of the random starts.
    """
    assert math.prod(levels) == problem.num_devices, (levels, problem.num_devices)
    rng = np.random.default_rng(seed)
    bound = lower_bound(problem)
    best: Labels | None = None
    for _ in range(starts):
        labels = _divide(problem, levels, kicks, rng)
        if trace.record(problem.value(labels)):
            best = labels
        if trace.is_over or trace.best <= bound + ROUNDING:
            break
    assert best is not None
    value = problem.value(best)
    return Partition(tuple(best.tolist()), value, min(value, bound), SPACE)


def _divide(
    problem: PartitionProblem, levels: Sequence[int], kicks: int, rng: np.random.Generator
) -> Labels:
    """Return the labels of one run."""
    if not levels:
        return np.zeros(problem.num_nodes, np.intp)
    num_blocks, size = levels[0], math.prod(levels[1:])
    upper = PartitionProblem(
        problem.weights, problem.edges, _block_means(problem.link_cost, num_blocks)
    )
    *_, (_, blocks) = local_optima(upper, rng, kicks, size)
    labels = np.zeros(problem.num_nodes, np.intp)
    for block in range(num_blocks):
        nodes = np.flatnonzero(blocks == block)
        inside = slice(block * size, (block + 1) * size)
        inner = problem.induced(nodes.tolist(), problem.link_cost[inside, inside])
        labels[nodes] = block * size + _divide(inner, levels[1:], kicks, rng)
    return labels


def _block_means(link_cost: Floats, num_blocks: int) -> Floats:
    """Return the mean cost between the devices of two blocks; 0 within a block."""
    size = len(link_cost) // num_blocks
    means: Floats = link_cost.reshape(num_blocks, size, num_blocks, size).mean(axis=(1, 3))
    np.fill_diagonal(means, 0.0)
    return (means + means.T) / 2
