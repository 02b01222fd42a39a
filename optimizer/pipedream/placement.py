"""What a stage on consecutive devices costs, at whatever place among the levels of links it is.

The nested planner gives a stage whole members of a level or a part of one. Here a stage takes any m
consecutive devices, counted server by server: 15 of four servers of four, for instance. It pays for its
all-reduce at the bandwidth of the innermost level that holds all of its devices, for what it receives at
that of the level that also holds the device before its first, and for what it sends that of the level that
also holds the device behind its last. With one level this is PipeDream's formula itself.
"""

import math
from collections.abc import Sequence

import numpy as np

from .problem import LevelsProblem, PlannedStage
from .topology import FloatArray


class Placement:
    """The costs of stages on devices [start, start + replicas)."""

    def __init__(self, problem: LevelsProblem, num_devices: int) -> None:
        self.problem = problem
        self.num_devices = num_devices
        """The first so many are used; there may be idle ones among them, but none behind the last."""
        self._group_sizes = tuple(
            math.prod(level.num_members for level in problem.levels[: index + 1])
            for index in range(len(problem.levels))
        )

    def bandwidth(self, first_rank: int, last_rank: int) -> float:
        """Return bytes/s of the innermost level that holds two devices and all between them."""
        for level, size in zip(self.problem.levels, self._group_sizes, strict=True):
            if first_rank // size == last_rank // size:
                return level.bandwidth_bytes_per_s
        raise AssertionError(f"devices {first_rank} and {last_rank} are on no level")

    def rates(self, start: int, replicas: int) -> FloatArray:
        """Return (n + 1,) seconds up to each cut: a stage p, q takes their difference."""
        bandwidth = self.bandwidth(start, start + replicas - 1)
        weight = self.problem.reduce_factor * (replicas - 1) / (bandwidth * replicas)
        return (self.problem.compute_s + weight * self.problem.parameter_bytes) / replicas

    def incoming_s(self, start: int, replicas: int) -> FloatArray:
        """Return (n + 1,) seconds for a stage that starts at each cut; 0 on the first device."""
        if start == 0:
            return np.zeros(len(self.problem.cuts))
        bandwidth = self.bandwidth(start - 1, start + replicas - 1)
        return self.problem.transfer_s(bandwidth, replicas)

    def outgoing_s(self, start: int, replicas: int) -> FloatArray:
        """Return (n + 1,) seconds for a stage that ends at each cut; 0 on the last device."""
        if start + replicas == self.num_devices:
            return np.zeros(len(self.problem.cuts))
        bandwidth = self.bandwidth(start, start + replicas)
        return self.problem.transfer_s(bandwidth, replicas)

    def most_kept_bytes(self, start: int, replicas: int) -> float:
        """Return how many bytes of parameters and outputs a stage may have; infinite without a limit."""
        behind = self.num_devices - start - replicas
        limit = self.problem.memory_bytes
        if limit is None or behind == 0:
            return math.inf
        return limit / -(-behind // replicas)

    def sizes(self, start: int) -> Sequence[int]:
        """Return the numbers of replicas that a stage from a device on may have."""
        return range(1, 2 if self.problem.straight else self.num_devices - start + 1)

    def planned(self, first: int, last: int, start: int, replicas: int) -> PlannedStage:
        """Return a stage with its times."""
        problem = self.problem
        bandwidth = self.bandwidth(start, start + replicas - 1)
        held = float(problem.parameter_bytes[last] - problem.parameter_bytes[first])
        sends = first > 0 and last < len(problem.cuts) - 1
        return PlannedStage(
            first=first,
            last=last,
            ranks=tuple(range(start, start + replicas)),
            compute_s=float(problem.compute_s[last] - problem.compute_s[first]) / replicas,
            reduce_s=problem.reduce_s(held, replicas, bandwidth),
            transfer_s=float(self.incoming_s(start, replicas)[first]) if first else 0.0,
            out_transfer_s=float(self.outgoing_s(start, replicas)[last]) if sends else 0.0,
        )
