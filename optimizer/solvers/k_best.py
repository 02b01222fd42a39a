"""The K best plans, in order: best-first search over first stages, guided by the exact solver's tables.

For thresholds T_0 = 0 < T_1 < ... < T_m = infinity the exact solver's programme gives L_i, the least
latency of the stages behind a cut when every load of theirs is at most T_i. If their largest load is in
(T_(i-1), T_i], a plan whose first stages take p with loads up to P has a value of at least
p + L_i + max(P, T_(i-1)); the least of these over i is below every way to go on. Plans are complete in the
order of their values, so the first K are the K best [A*: Hart, Nilsson and Raphael, 1968].
"""

import heapq
import itertools
import math
import time
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from stagewright.document import InputError
from stagewright.optimizer.costs.cost import FloatArray, has_flush
from stagewright.optimizer.costs.tables import Devices
from stagewright.optimizer.problem import Problem, StageChoice

from .exact import Columns, Search, minus
from .solution import Solution, space_of

THRESHOLDS = 12
MOST_NODES = 300_000


@dataclass(frozen=True)
class _Node:
    """The first stages of plans that use `left` devices in the stages to come."""

    weight: float
    left: Devices
    limit: int
    """Stages that may follow; 0 if unlimited."""
    place: int
    """Of the last stage so far."""
    sum_ms: float
    load_ms: float
    stages: tuple[StageChoice, ...]

    @property
    def first(self) -> int:
        """The layer behind the stages so far."""
        return self.stages[-1].last if self.stages else 0


def k_best(
    problem: Problem, best: Solution, count: int, deadline: float = math.inf
) -> tuple[list[Solution], bool]:
    """Return the `count` best plans that differ in more than the names of alike servers, and whether all.

    They come best first. There are fewer if the space has fewer, or if time is up.

    Args:
        best: an optimal plan of the same problem; it stands for the others if none is known in time.
        deadline: by time.perf_counter.

    Raises:
        InputError: the search is too large.
    """
    if time.perf_counter() > deadline:
        return [best], count == 1
    search = _BestFirst(problem, best, count)
    try:
        is_whole = search.run(deadline)
    except KeyboardInterrupt:
        is_whole = False
    return search.found or [best], is_whole


class _BestFirst:
    """The state of one search."""

    def __init__(self, problem: Problem, best: Solution, count: int) -> None:
        self.problem, self.count = problem, count
        self.search = Search(problem)
        flush, inference = has_flush(problem.objective), problem.is_inference
        self.sum_weight = 1.0 if flush or inference else 0.0
        self.load_weight = 0.0 if inference else 1.0
        most_ms = problem.most_load_ms
        steps = np.linspace(0.25, 2.0, THRESHOLDS) * best.value_ms
        finite = [float(t) for t in steps if t < most_ms] if self.load_weight else []
        self.columns: list[Columns] = [self.search.fill(t) for t in (*finite, most_ms)]
        self.lows = np.array([0.0, *finite])
        self.heap: list[tuple[float, int, _Node | None, tuple[StageChoice, ...]]] = []
        self.number = itertools.count()
        self.found: list[Solution] = []
        self.known: dict[object, float] = {}
        """The values of complete plans by signature."""

    def run(self, deadline: float) -> bool:
        """Add to `found` what follows; return whether nothing is missing."""
        for group in self.search.classes:
            for used in group.sets:
                root = _Node(group.weight, used, self.problem.max_stages or 0, 0, 0.0, 0.0, ())
                self._push(0.0, root)
        seen: set[object] = set()
        for _ in range(MOST_NODES):
            if not self.heap or len(self.found) == self.count:
                return True
            if time.perf_counter() > deadline:
                return False
            value, _, node, stages = heapq.heappop(self.heap)
            if node is not None:
                self._expand(node)
            elif (key := signature(self.problem, stages)) not in seen:
                seen.add(key)
                self.found.append(self._solution(value, stages))
        raise InputError(
            f"{self.problem.inputs.cluster_path}: the {self.count} best plans are not known after "
            f"{MOST_NODES} steps; ask for fewer with --top, or limit the plans (--max-stages, --fix)"
        )

    def _solution(self, value: float, stages: tuple[StageChoice, ...]) -> Solution:
        time_ms = value / self._weight(stages) if value else 0.0
        return Solution(
            solver="exact",
            stages=stages,
            value_ms=time_ms,
            bound_ms=time_ms,
            space=space_of(self.problem),
            evaluated=len(self.known),
        )

    def _weight(self, stages: tuple[StageChoice, ...]) -> float:
        return self.problem.worth_of_ms([choice.devices for choice in stages])

    def _limit(self) -> float:
        """Return the value from which on plans are not among the best."""
        if len(self.known) < self.count:
            return math.inf
        return sorted(self.known.values())[self.count - 1]

    def _push(self, bound: float, node: _Node) -> None:
        heapq.heappush(self.heap, (bound, next(self.number), node, node.stages))

    def _expand(self, node: _Node) -> None:
        """Add the plans of every next stage; those that it completes with their value."""
        limit_value = self._limit() * (1 + 1e-9)
        for devices, recompute in self.search.tables.stage_kinds:
            left = minus(node.left, devices)
            if min(left) < 0:
                continue
            for last, bound, child in self._children(node, devices, recompute, left):
                if bound > limit_value:
                    continue
                if last == self.search.tables.size:
                    self._complete(child)
                else:
                    self._push(bound, child)

    def _children(
        self, node: _Node, devices: Devices, recompute: bool, left: Devices
    ) -> list[tuple[int, float, _Node]]:
        """Return (behind its last layer, bound, node) of every next stage on some devices."""
        tables, first = self.search.tables, node.first
        table = tables.table(devices, node.place, recompute)
        place, limit = tables.place_of(devices), max(node.limit - 1, 0)
        if (left, limit, place) not in self.columns[0]:
            return []
        fits = tables.fits(devices, node.place, sum(node.left), recompute)[first]
        fits = fits & tables.allowed_stages(frozenset(tables.types_of(devices)))[first]
        loads = np.maximum(table.load_ms[first], node.load_ms)
        sums = node.sum_ms + table.latency_ms[first] + table.incoming_ms[first]
        behind = np.stack([columns[left, limit, place].sums for columns in self.columns])
        bounds = node.weight * self._bounds(sums + behind, loads)
        ends = np.flatnonzero(fits & (loads <= self.problem.most_load_ms) & (bounds < math.inf))
        return [
            (
                int(last),
                float(bounds[last]),
                _Node(
                    node.weight,
                    left,
                    limit,
                    place,
                    float(sums[last]),
                    float(loads[last]),
                    (*node.stages, StageChoice(first, int(last), devices, recompute)),
                ),
            )
            for last in ends
            if last > first
        ]

    def _bounds(self, sums: FloatArray, loads: FloatArray) -> FloatArray:
        """Return the least times of plans whose stages so far have some loads, over all thresholds."""
        loads = np.maximum(loads, self.lows[:, None])
        # Where nothing is reachable the sum is infinite, whatever the objective makes of it.
        reachable = sums < math.inf
        times = np.where(reachable, self.sum_weight * np.where(reachable, sums, 0.0), math.inf)
        bounds: FloatArray = (times + self.load_weight * loads).min(axis=0)
        return bounds

    def _complete(self, node: _Node) -> None:
        load_ms = self.search.load_ms(node.stages)
        time_ms = self.sum_weight * node.sum_ms + self.load_weight * load_ms
        deadline_ms = self.problem.constraints.deadline_ms
        if deadline_ms is not None and time_ms > deadline_ms * (1 + 1e-9):
            return
        value = node.weight * time_ms
        key = signature(self.problem, node.stages)
        self.known[key] = min(value, self.known.get(key, math.inf))
        heapq.heappush(self.heap, (value, next(self.number), None, node.stages))


def signature(problem: Problem, stages: tuple[StageChoice, ...]) -> object:
    """Return what two plans share that differ in nothing but which of alike servers they use."""
    contents: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for group in problem.groups:
        contents[group.server].append((group.device_type, len(group.slots)))
    labels: dict[str, int] = {}
    numbers: dict[object, int] = defaultdict(int)
    rows = []
    for choice in stages:
        used = []
        for devices, group in zip(choice.devices, problem.groups, strict=True):
            if devices:
                kind = tuple(contents[group.server])
                if group.server not in labels:
                    labels[group.server] = numbers[kind]
                    numbers[kind] += 1
                used.append((kind, labels[group.server], group.device_type, devices))
        rows.append((choice.first, choice.last, choice.recompute, tuple(sorted(used))))
    return tuple(rows)
