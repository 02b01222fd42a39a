"""Solver `exact` for devices of several types under SparsePipe's formula: any order of types, any mixes.

For a threshold T on the slowest stage or transfer, the sets of devices are gone through, small ones first.
A stage grows with the layers that it holds, and whether a cut may be made under T depends on its link only:
so for each set of devices, and each server that its last stage is in, the last cut that plans under T reach
is all that matters, one for a next stage in the same server and one for any other. Bisection on T finds the
optimum to a relative 1e-10. A set of devices is a number in the mixed radix of the classes' counts, so that
"without the devices d" is a subtraction, and all last stages d of a set are tried by one array operation.

Source: the formula is that of SparsePipe's planner, the search is our own.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from stagewright.document import InputError
from stagewright.optimizer.pipedream.mixed_problem import SPANNING, MixedProblem
from stagewright.optimizer.pipedream.problem import (
    PlannedPipeline,
    PlannedStage,
    contraction_of,
)
from stagewright.optimizer.pipedream.topology import IntArray

TOLERANCE = 1e-10
MOST_PAIRS = 5e6
"""A set of devices and its last stage: about ten seconds in all."""
NOWHERE = -1
INSIDE, BETWEEN = 0, 1
"""Links to a next stage: both stages in one server, or not."""


def solve(problem: MixedProblem) -> PlannedPipeline | None:
    """Return the optimal plan; None if none fits into memory.

    Raises:
        InputError: there are too many devices of too many types.
    """
    space = _Space(problem)
    best = _best_under(space, np.inf)
    if best is None:
        return None
    low, high = problem.lower_bound_s * (1 - 1e-9), _value_s(best)
    while high - low > TOLERANCE * high:
        middle = (low + high) / 2
        found = _best_under(space, middle)
        if found is None:
            low = middle
            continue
        if _value_s(found) < _value_s(best):
            best = found
        high = min(middle, _value_s(found))
    value_s = _value_s(best)
    contracted = contraction_of(problem.cuts)
    return PlannedPipeline(
        solver="exact",
        stages=best,
        value_s=value_s,
        bound_s=min(problem.lower_bound_s, value_s) if contracted else value_s,
        space="all cuts, device types in any order, "
        + ("no replicas" if problem.straight else "any replicas of one or several types per stage")
        + ", stages over several servers, idle devices allowed"
        + (f"; {contracted}" if contracted else ""),
        cuts=problem.cuts,
    )


def _best_under(space: "_Space", threshold_s: float) -> tuple[PlannedStage, ...] | None:
    """Return a plan under a threshold; None if there is none."""
    most = space.problem.num_devices
    # How many devices come behind a stage matters for memory only.
    fewest = most if space.problem.memory_bytes is None else 1
    for num_used in range(most, fewest - 1, -1):
        stages = _Reach(space, threshold_s, num_used).stages()
        if stages is not None:
            return stages
    return None


def _value_s(stages: tuple[PlannedStage, ...]) -> float:
    return max(stage.stage_s for stage in stages)


@dataclass(frozen=True)
class _Parts:
    """The last stages that a set of devices can have, those at one place together."""

    stages: IntArray
    before: IntArray
    """The set without the stage."""
    places: IntArray
    rates: IntArray
    """Which row of the table of furthest ends holds for the stage."""
    groups: tuple[tuple[int, slice], ...]
    """(place, where its stages are)."""


class _Space:
    """The sets of devices that stages and plans can use, by number."""

    def __init__(self, problem: MixedProblem) -> None:
        self.problem = problem
        counts = np.array([len(group.ranks) for group in problem.classes])
        pairs = float(np.prod((counts + 1.0) * (counts + 2.0) / 2))
        if pairs > MOST_PAIRS:
            raise InputError(
                f"{problem.num_devices} devices in {len(counts)} groups of one type and server have "
                f"{pairs:.0e} ways to add a stage, expected at most {MOST_PAIRS:.0e}; plan for fewer "
                "devices, or use stagewright optimize"
            )
        shape = tuple(counts + 1)
        self.sets: IntArray = np.indices(shape).reshape(len(counts), -1).T
        """(D, classes) devices of each set; a set's row is its number."""
        self.sizes: IntArray = self.sets.sum(axis=1)
        self.order: IntArray = np.lexsort((np.arange(len(self.sets)), self.sizes))
        servers = np.array([group.server for group in problem.classes])
        ranks_of_types = [problem.types.index(group.device_type) for group in problem.classes]
        self.places = (*range(problem.num_servers), SPANNING)
        """Where a last stage can be."""
        used = self.sets > 0
        slowest = np.where(used, np.array(ranks_of_types), 0).max(axis=1)
        most = np.where(used, servers, -1).max(axis=1)
        least = np.where(used, servers, len(servers)).min(axis=1)
        self._place: IntArray = np.where(most == least, most, len(self.places) - 1)
        """Of each set, the index of the place that holds it."""
        spanning = self._place == len(self.places) - 1
        self._rate: IntArray = (slowest * (problem.num_devices + 1) + self.sizes) * 2 + spanning
        stages = np.flatnonzero(self.sizes == 1 if problem.straight else self.sizes > 0)
        self._stages: IntArray = stages[np.lexsort((stages, self._place[stages]))]
        """The sets that a stage may have, by place."""
        self.parts = tuple(map(self._parts_of, range(len(self.sets))))

    def _parts_of(self, number: int) -> _Parts:
        stages = self._stages[(self.sets[self._stages] <= self.sets[number]).all(axis=1)]
        places = self._place[stages]
        edges = np.searchsorted(places, np.arange(len(self.places) + 1))
        groups = tuple(
            (place, slice(int(first), int(last)))
            for place, (first, last) in enumerate(itertools.pairwise(edges))
            if first < last
        )
        return _Parts(stages, number - stages, places, self._rate[stages], groups)


class _Reach:
    """How far plans under a threshold reach, for every set of devices and place of the last stage."""

    def __init__(self, space: _Space, threshold_s: float, num_used: int) -> None:
        self._space = space
        self._num_used = num_used
        """No plan uses more devices; where memory is limited, plans that use fewer do not count."""
        self._threshold_s = threshold_s
        self._last_cuts = (self._last_allowed(0), self._last_allowed(SPANNING))
        """For a next stage over each link (INSIDE, BETWEEN), (n + 2,) the last cut up to each that may be."""
        self._ends = self._furthest_ends()
        shape = (len(space.sets), len(space.places))
        self._cut = np.full((2, *shape), NOWHERE)
        """By link to the next stage: the last cut that it may start at if the last stage is at the place."""
        self._stage = np.full((2, *shape), NOWHERE)
        """The last stage of the plan that gets there."""
        self._start = np.full(shape, NOWHERE)
        """From where a next stage at the place goes on, whatever the place of the last stage."""
        self._start[0] = 0

    def _last_allowed(self, server: int) -> IntArray:
        """Return (n + 2,) the last cut up to each at which a border may be; NOWHERE is last, as index -1."""
        allowed = self._space.problem.transfer_s(server) <= self._threshold_s
        allowed[0] = allowed[-1] = True
        last = np.maximum.accumulate(np.where(allowed, np.arange(len(allowed)), 0))
        return np.append(last, NOWHERE)

    def _furthest_ends(self) -> IntArray:
        """Return how far a stage from each cut gets, a row per rate; NOWHERE is last, as index -1."""
        problem = self._space.problem
        size = len(problem.cuts)
        ends = np.full((len(problem.types), problem.num_devices + 1, 2, size + 1), NOWHERE)
        for kind, name in enumerate(problem.types):
            for replicas in range(1, 2 if problem.straight else problem.num_devices + 1):
                for link in range(2 if problem.num_servers > 1 else 1):
                    rates = problem.rates(name, replicas, SPANNING if link else 0)
                    limits = rates + self._threshold_s
                    found = np.searchsorted(rates, limits, "right") - 1
                    ends[kind, replicas, link, :-1] = found
        return ends.reshape(-1, size + 1)

    def stages(self) -> tuple[PlannedStage, ...] | None:
        """Return a plan under the threshold; None if there is none."""
        end = len(self._space.problem.cuts) - 1
        limited = self._space.problem.memory_bytes is not None
        for number in self._space.order[1:]:
            size = int(self._space.sizes[number])
            if size > self._num_used:
                break
            self._extend(int(number))
            if limited and size < self._num_used:
                continue
            places = np.flatnonzero(self._cut[BETWEEN, number] == end)
            if len(places):
                return self._read(int(number), int(places[0]))
        return None

    def _extend(self, number: int) -> None:
        """Find how far the plans of a set of devices get, from those of its subsets."""
        parts = self._space.parts[number]
        starts = self._start[parts.before, parts.places]
        ends = self._limited(self._ends[parts.rates, starts], starts, number)
        for link, last_cuts in enumerate(self._last_cuts):
            cuts = last_cuts[ends]
            cuts[cuts <= starts] = NOWHERE  # a stage holds a layer
            for place, group in parts.groups:
                best = group.start + int(np.argmax(cuts[group]))
                self._cut[link, number, place] = cuts[best]
                self._stage[link, number, place] = parts.stages[best]
        self._start[number] = self._cut[BETWEEN, number].max()
        inner = slice(0, len(self._space.places) - 1)
        inside = self._cut[INSIDE, number, inner]
        self._start[number, inner] = np.maximum(inside, self._start[number, inner])

    def _limited(self, ends: IntArray, starts: IntArray, number: int) -> IntArray:
        """Return how far the stages of a set get within memory."""
        space, problem = self._space, self._space.problem
        if problem.memory_bytes is None:
            return ends
        behind = self._num_used - int(space.sizes[number])
        replicas = space.sizes[space.parts[number].stages]
        most = np.array([problem.most_kept_bytes(behind, int(m)) for m in replicas])
        kept = problem.kept_bytes
        within = np.searchsorted(kept, kept[starts] + most, "right") - 1
        return np.where(starts == NOWHERE, NOWHERE, np.minimum(ends, within))

    def _read(self, number: int, index: int) -> tuple[PlannedStage, ...]:
        """Return the stages of the plan that the tables hold for a set and the place of its last stage."""
        space, problem = self._space, self._space.problem
        found: list[tuple[int, int, tuple[int, ...], int]] = []
        end, link = len(problem.cuts) - 1, BETWEEN
        while number:
            stage = int(self._stage[link, number, index])
            number -= stage
            start = int(self._start[number, index])
            devices = tuple(map(int, space.sets[stage]))
            place = self._space.places[index]
            if number:
                index, link = self._origin(number, index, start)
            found.append((start, end, devices, place if link == INSIDE else SPANNING))
            end = start
        return _with_ranks(problem, found[::-1])

    def _origin(self, number: int, index: int, start: int) -> tuple[int, int]:
        """Return the place (as an index) of the stage before one at a place, and the link to it."""
        if index < len(self._space.places) - 1 and self._cut[INSIDE, number, index] == start:
            return index, INSIDE
        return int(np.flatnonzero(self._cut[BETWEEN, number] == start)[0]), BETWEEN


def _with_ranks(
    problem: MixedProblem, found: list[tuple[int, int, tuple[int, ...], int]]
) -> tuple[PlannedStage, ...]:
    """Return the stages; each takes the next free ranks of its classes."""
    taken = [0] * len(problem.classes)
    stages = []
    for first, last, devices, link in found:
        ranks: list[int] = []
        for index, count in enumerate(devices):
            ranks += problem.classes[index].ranks[taken[index] : taken[index] + count]
            taken[index] += count
        stages.append(problem.planned(first, last, devices, tuple(sorted(ranks)), link))
    return tuple(stages)
