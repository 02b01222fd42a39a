"""Solver `brute-force`: every assignment, node after node, without the branches that cannot be better.

A branch is cut when the links paid so far and the least variance that the remaining weight allows reach the
best value. Devices that can be exchanged without changing the costs are first used in their order. Within the
time it tries, or to the end: then the best is proven.
"""

from dataclasses import dataclass

import numpy as np

from .bound import lower_bound
from .problem import Partition, PartitionProblem
from .trace import Trace

SPACE = "every assignment"


@dataclass
class _Branch:
    """The devices that are left to try for one node."""

    left: list[int]
    taken: int = -1
    paid_before: float = 0.0


def solve(problem: PartitionProblem, trace: Trace) -> Partition:
    """Return the best assignment found in the trace's time, the best of all if the bound says so."""
    search = _Search(problem, trace)
    finished = search.run()
    value = problem.value(search.best)
    bound = value if finished else min(value, lower_bound(problem))
    return Partition(tuple(search.best), value, bound, SPACE)


class _Search:
    def __init__(self, problem: PartitionProblem, trace: Trace) -> None:
        self._problem = problem
        self._trace = trace
        self._cost: list[list[float]] = problem.link_cost.tolist()
        self._mean = sum(problem.weights) / problem.num_devices
        self._twins = _twins(problem)
        # Edges are paid at their later node.
        self._earlier = [
            [other for other in ends if other < node]
            for node, ends in enumerate(problem.neighbours)
        ]
        self._remaining = [sum(problem.weights[node:]) for node in range(problem.num_nodes + 1)]
        self._weights = [0] * problem.num_devices
        self._counts = [0] * problem.num_devices
        self._labels = [-1] * problem.num_nodes
        self.best = [min(node, problem.num_devices - 1) for node in range(problem.num_nodes)]
        trace.record(problem.value(self.best))

    def run(self) -> bool:
        """Search; return whether every assignment was looked at."""
        paid = 0.0
        stack = [_Branch(self._choices(0))]
        steps = 0
        while stack:
            steps += 1
            if steps % 1024 == 0 and self._trace.is_over:
                return False
            node, branch = len(stack) - 1, stack[-1]
            if branch.taken >= 0:
                self._leave(node, branch.taken)
                paid = branch.paid_before
                branch.taken = -1
            if not branch.left:
                stack.pop()
                continue
            device = branch.left.pop(0)
            branch.taken, branch.paid_before = device, paid
            paid += sum(self._cost[device][self._labels[other]] for other in self._earlier[node])
            self._enter(node, device)
            if not self._can_improve(node, paid):
                continue
            if node + 1 < self._problem.num_nodes:
                stack.append(_Branch(self._choices(node + 1)))
            elif self._trace.record(self._problem.value(self._labels)):
                self.best = list(self._labels)
        return True

    def _enter(self, node: int, device: int) -> None:
        self._labels[node] = device
        self._weights[device] += self._problem.weights[node]
        self._counts[device] += 1

    def _leave(self, node: int, device: int) -> None:
        self._labels[node] = -1
        self._weights[device] -= self._problem.weights[node]
        self._counts[device] -= 1

    def _can_improve(self, node: int, paid: float) -> bool:
        if self._counts.count(0) > self._problem.num_nodes - node - 1:
            return False
        least = paid + _least_variance(self._weights, self._remaining[node + 1], self._mean)
        # A little more than rounding, so that no equal value is taken for a better one.
        return least < self._trace.best - 1e-9 * max(1.0, self._trace.best)

    def _choices(self, node: int) -> list[int]:
        """Return the devices to try: the previous node's until it has its share, then by link and weight."""
        seen: set[int] = set()
        choices = []
        for device, twins in enumerate(self._twins):
            if self._counts[device] == 0:
                if twins in seen:
                    continue
                seen.add(twins)
            choices.append(device)
        weight = self._problem.weights[node]
        near = self._labels[node - 1] if node else 0

        def preference(device: int) -> tuple[bool, float, float]:
            full = self._weights[device] + weight / 2 > self._mean
            return full, self._cost[near][device], self._weights[device]

        return sorted(choices, key=preference)


def _twins(problem: PartitionProblem) -> list[int]:
    """Return for every device the first one that it can be exchanged with."""
    cost = problem.link_cost
    found = []
    for device in range(problem.num_devices):
        for other in range(device + 1):
            others = np.ones(problem.num_devices, bool)
            others[[device, other]] = False
            if (cost[device, others] == cost[other, others]).all():
                found.append(other)
                break
    return found


def _least_variance(weights: list[int], remaining: int, mean: float) -> float:
    """Return the least sum of squared distances when the remaining weight fills up the lightest devices."""
    lightest = sorted(weights)
    level = 0.0
    filled = 0
    total = remaining
    for number, weight in enumerate(lightest):
        total += weight
        level = total / (number + 1)
        filled = number + 1
        if filled == len(lightest) or level <= lightest[filled]:
            break
    heavy = sum((weight - mean) ** 2 for weight in lightest[filled:])
    return filled * (level - mean) ** 2 + heavy
