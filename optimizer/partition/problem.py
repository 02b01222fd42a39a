"""Deal the nodes of a weighted graph to devices: the objective of the partition demos.

value = sum over devices of (W_i - mean W)^2 + sum over edges between devices i and j of link_cost[i, j].
Every device gets a node. The two terms have different units, and neither is a time; the demos show searches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PartitionProblem:
    """A graph and the devices for it."""

    weights: tuple[int, ...]
    """Of the nodes."""
    edges: tuple[tuple[int, int], ...]
    """Directed; every one counts."""
    link_cost: Floats
    """(devices, devices), symmetric, with a zero diagonal."""

    def __post_init__(self) -> None:
        costs = self.link_cost
        if costs.ndim != 2 or costs.shape[0] != costs.shape[1] or not (costs == costs.T).all():
            raise ValueError(
                f"link_cost has shape {costs.shape}; expected a symmetric square matrix"
            )
        if (np.diag(costs) != 0).any() or not (np.isfinite(costs) & (costs >= 0)).all():
            raise ValueError(
                "link_cost has a diagonal entry, or one that is negative or not finite"
            )
        if self.num_nodes < self.num_devices:
            raise ValueError(
                f"there are {self.num_nodes} nodes for {self.num_devices} devices; expected at least one each"
            )

    @property
    def num_nodes(self) -> int:
        return len(self.weights)

    @property
    def num_devices(self) -> int:
        return len(self.link_cost)

    @cached_property
    def neighbours(self) -> tuple[tuple[int, ...], ...]:
        """For every node the other ends of its edges, once per edge."""
        found: list[list[int]] = [[] for _ in self.weights]
        for source, target in self.edges:
            if source != target:
                found[source].append(target)
                found[target].append(source)
        return tuple(tuple(ends) for ends in found)

    def value(self, labels: Sequence[int] | Labels) -> float:
        """Return the objective of an assignment; infinite if a device has no node.

        Args:
            labels: (nodes,) the device of each.
        """
        labels = np.asarray(labels)
        if len(np.unique(labels)) < self.num_devices:
            return float("inf")
        weights = np.bincount(labels, self.weights, self.num_devices)
        variance = ((weights - weights.mean()) ** 2).sum()
        if not self.edges:
            return float(variance)
        sources, targets = np.array(self.edges).T
        return float(variance + self.link_cost[labels[sources], labels[targets]].sum())

    def induced(self, nodes: Sequence[int], link_cost: Floats) -> "PartitionProblem":
        """Return the problem of some nodes, in their order, with the edges among them."""
        position = {node: number for number, node in enumerate(nodes)}
        return PartitionProblem(
            tuple(self.weights[node] for node in nodes),
            tuple(
                (position[a], position[b]) for a, b in self.edges if a in position and b in position
            ),
            link_cost,
        )


@dataclass(frozen=True)
class Partition:
    """What a search found."""

    labels: tuple[int, ...]
    """The device of every node."""
    value: float
    bound: float
    """No assignment has less; 0 where a search proves nothing."""
    space: str
