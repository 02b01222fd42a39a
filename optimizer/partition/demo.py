"""The demos' graph and devices."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .problem import Floats, PartitionProblem

NUM_NODES = 201
NODE_WEIGHT = 2
LEVELS = (2, 3, 4, 4)
"""The 96 devices: 2 halls of 3 racks of 4 servers of 4."""
COST_PER_LEVEL = 0.5

Devices = Literal["3", "96"]
Matrix = Literal["published", "intended"]


@dataclass(frozen=True)
class Demo:
    """One demo."""

    name: str
    problem: PartitionProblem
    levels: tuple[int, ...]
    """How the devices nest, for the hierarchical search."""


def demo(devices: Devices, matrix: Matrix = "published") -> Demo:
    """Return a demo; with 3 devices every link costs 1 and there is only one matrix.

    The published matrix of the 96 devices knows 48 pairs without cost, and 0.5 for all other links; the
    intended one has 0.5 for every level at which two devices are apart.
    """
    if devices == "3":
        cost: Floats = 1.0 - np.eye(3)
        return Demo("3 devices, every link costs 1", _problem(cost), (3,))
    if matrix == "published":
        return Demo("96 devices, published matrix", _problem(_pairs()), LEVELS)
    return Demo("96 devices, intended matrix", _problem(_nested()), LEVELS)


def _problem(link_cost: Floats) -> PartitionProblem:
    """Return the graph of two chains that meet at node 100; undirected it is one path of 201 nodes."""
    first = [(node, node + 1) for node in range(100)]
    second = [(node, node + 1) for node in range(101, 200)]
    return PartitionProblem((NODE_WEIGHT,) * NUM_NODES, (*first, *second, (200, 100)), link_cost)


def _pairs() -> Floats:
    """Return the cost matrix in which only the two devices of a pair are together."""
    pair = np.arange(int(np.prod(LEVELS))) // 2
    return np.where(pair[:, None] == pair, 0.0, COST_PER_LEVEL)


def _nested() -> Floats:
    """Return the cost matrix that counts the levels at which two devices are apart."""
    size = int(np.prod(LEVELS))
    numbers = np.arange(size)
    levels_apart = np.zeros((size, size))
    for level in LEVELS:
        size //= level
        block = numbers // size
        levels_apart += block[:, None] != block
    return levels_apart * COST_PER_LEVEL
