"""Solver `exact` for equal devices behind levels of links: stages on consecutive devices, any replicas.

The value of a plan is the largest of its stages' and transfers' times. On a chain, a threshold T on it is
tested in O(n N^2) time: for every number of devices used, the cuts that plans under T can end at are a set;
a stage grows with the layers that it holds, so of the cuts that it may start at the last one in the set is
the best. Bisection on T then finds the optimum to a relative 1e-11. On the cuts of a branching graph, where
"the last one" means nothing, a dynamic programme over pairs of nested cuts finds it in O(n^2 N^2) time.
Idle devices are allowed. Nothing recurses, so 10 000 layers are no trouble.

Source: the dynamic programme is that of Narayanan et al., SOSP 2019, section 3.1, on one level.
"""

from dataclasses import dataclass

import numpy as np

from stagewright.optimizer.pipedream.cuts import Cuts, cuts_of, thinned
from stagewright.optimizer.pipedream.placement import Placement
from stagewright.optimizer.pipedream.problem import (
    LevelsProblem,
    PlannedPipeline,
    PlannedStage,
    contraction_of,
)
from stagewright.optimizer.pipedream.topology import BoolArray, FloatArray, Topology

TOLERANCE = 1e-11
MOST_WORK = 3e8
"""Pairs of cuts times pairs of numbers of devices, for branching graphs."""
MOST_CUTS = 2000
MOST_CHAIN = 20_000

Step = tuple[int, int, int] | None
"""How a state is reached: cut, device and replicas of its last stage; None: its last device stays idle."""


def cuts_for(topology: Topology, num_devices: int) -> Cuts:
    """Return every cut if the solver can take them in a second or two, else those of a chain."""
    most = int((MOST_WORK * 4 / (num_devices * (num_devices + 1))) ** 0.5)
    return thinned(cuts_of(topology, min(most, MOST_CUTS)), MOST_CHAIN)


def solve(problem: LevelsProblem) -> PlannedPipeline | None:
    """Return the optimal plan; None if none fits into memory."""
    # How many devices come behind a stage matters for memory only.
    fewest = problem.num_devices if problem.memory_bytes is None else 1
    plans = []
    for used in range(problem.num_devices, fewest - 1, -1):
        placement = Placement(problem, used)
        found = _bisect(placement) if problem.cuts.is_chain else _Table(placement).stages()
        if found is not None:
            plans.append(found)
    if not plans:
        return None
    stages = min(plans, key=_value_s)
    value_s = _value_s(stages)
    contracted = contraction_of(problem.cuts)
    replicas = "no replicas" if problem.straight else "any replicas"
    return PlannedPipeline(
        solver="exact",
        stages=stages,
        value_s=value_s,
        bound_s=min(problem.lower_bound_s, value_s) if contracted else value_s,
        space=f"all stages between nested cuts on consecutive devices, {replicas}, idle devices allowed"
        + (f"; {contracted}" if contracted else ""),
        cuts=problem.cuts,
    )


def _value_s(stages: tuple[PlannedStage, ...]) -> float:
    return max(stage.stage_s for stage in stages)


def _bisect(placement: Placement) -> tuple[PlannedStage, ...] | None:
    """Return the best plan over a chain."""
    best = _Reach(placement, np.inf).stages()
    if best is None:
        return None
    low = placement.problem.lower_bound_s * (1 - 1e-9)
    high = _value_s(best)
    while high - low > TOLERANCE * high:
        middle = (low + high) / 2
        found = _Reach(placement, middle).stages()
        if found is None:
            low = middle
        else:
            value_s = _value_s(found)
            if value_s < _value_s(best):
                best = found
            high = min(middle, value_s)
    return best


class _Reach:
    """Which cuts of a chain plans under a threshold can end at, by the number of devices up to there."""

    def __init__(self, placement: Placement, threshold_s: float) -> None:
        self._placement = placement
        self._threshold_s = threshold_s
        problem = placement.problem
        size = len(problem.cuts)
        self._reached = np.zeros((placement.num_devices + 1, size), dtype=bool)
        self._reached[:, 0] = True
        self._cut = np.zeros((placement.num_devices + 1, size), dtype=np.intp)
        self._replicas = np.zeros((placement.num_devices + 1, size), dtype=np.intp)
        """Of the last stage; 0: the last device stays idle."""

    def stages(self) -> tuple[PlannedStage, ...] | None:
        """Return a plan under the threshold; None if there is none."""
        num_devices = self._placement.num_devices
        for start in range(num_devices):
            self._mark(start + 1, self._reached[start], np.zeros_like(self._cut[0]), 0)
            for replicas in self._placement.sizes(start):
                origin, allowed = self._origins(start, replicas)
                self._mark(start + replicas, allowed, origin, replicas)
        if not self._reached[-1, -1]:
            return None
        found: list[PlannedStage] = []
        used, cut = num_devices, len(self._cut[0]) - 1
        while cut:
            replicas = int(self._replicas[used, cut])
            before = int(self._cut[used, cut]) if replicas else cut
            if replicas:
                found.append(self._placement.planned(before, cut, used - replicas, replicas))
            used, cut = used - (replicas or 1), before
        return tuple(reversed(found))

    def _mark(self, used: int, allowed: BoolArray, origin: np.ndarray, replicas: int) -> None:
        new = allowed & ~self._reached[used]
        self._reached[used] |= new
        self._cut[used, new] = origin[new]
        self._replicas[used, new] = replicas

    def _origins(self, start: int, replicas: int) -> tuple[np.ndarray, BoolArray]:
        """Return (n + 1,) the best cut before a stage that ends at each cut, and whether it is allowed."""
        placement, limit_s = self._placement, self._threshold_s
        kept = placement.problem.kept_bytes
        rates = placement.rates(start, replicas)
        most = placement.most_kept_bytes(start, replicas)
        numbers = np.arange(len(kept))
        starts = self._reached[start] & (placement.incoming_s(start, replicas) <= limit_s)
        last = np.maximum.accumulate(np.where(starts, numbers, 0))
        origin = np.concatenate([[0], last[:-1]])
        sends = placement.outgoing_s(start, replicas)
        sends[-1] = 0.0
        from_origin = (rates - rates[origin] <= limit_s) & (kept - kept[origin] <= most)
        from_origin &= (origin > 0) & (sends <= limit_s)
        # The first stage is not charged for what it sends.
        from_start = (rates - rates[0] <= limit_s) & (kept - kept[0] <= most) & (numbers > 0)
        return np.where(from_origin, origin, 0), from_origin | from_start


@dataclass
class _Table:
    """Best values over all cuts of a branching graph, by the number of devices up to there."""

    placement: Placement

    def stages(self) -> tuple[PlannedStage, ...] | None:
        """Return the best plan; None if there is none."""
        problem = self.placement.problem
        size, num_devices = len(problem.cuts), self.placement.num_devices
        best = np.full((num_devices + 1, size), np.inf)
        best[:, 0] = 0.0
        steps: list[list[Step]] = [[None] * size for _ in range(num_devices + 1)]
        for start in range(num_devices):
            idle = best[start] < best[start + 1]
            self._take(best[start + 1], steps[start + 1], best[start], idle, [None] * size)
            for replicas in self.placement.sizes(start):
                values, origins = self._best_origins(best[start], start, replicas)
                used = start + replicas
                better = values < best[used]
                found: list[Step] = [(int(origin), start, replicas) for origin in origins]
                self._take(best[used], steps[used], values, better, found)
        if not np.isfinite(best[-1, -1]):
            return None
        stages: list[PlannedStage] = []
        used, cut = num_devices, size - 1
        while cut:
            step = steps[used][cut]
            if step is None:
                used -= 1
                continue
            stages.append(self.placement.planned(step[0], cut, step[1], step[2]))
            cut, used = step[0], step[1]
        return tuple(reversed(stages))

    def _take(
        self,
        best: FloatArray,
        steps: list[Step],
        values: FloatArray,
        better: BoolArray,
        found: list[Step],
    ) -> None:
        best[better] = values[better]
        for cut in np.flatnonzero(better):
            steps[cut] = found[cut]

    def _best_origins(
        self, before: FloatArray, start: int, replicas: int
    ) -> tuple[FloatArray, np.ndarray]:
        """Return (n + 1,) the best value of a stage that ends at each cut, and where it starts."""
        problem = self.placement.problem
        kept = problem.kept_bytes
        rates = self.placement.rates(start, replicas)
        sends = self.placement.outgoing_s(start, replicas)
        sends[-1] = 0.0
        ahead = np.maximum(before, self.placement.incoming_s(start, replicas))
        ahead[0] = before[0]
        values = np.maximum(rates[None, :] - rates[:, None], ahead[:, None])
        values[1:] = np.maximum(values[1:], sends[None, :])
        fits = kept[None, :] - kept[:, None] <= self.placement.most_kept_bytes(start, replicas)
        values = np.where(problem.cuts.nested & fits, values, np.inf)
        origins = np.argmin(values, axis=0)
        return values[origins, np.arange(len(kept))], origins
