"""Solver `exact`: the plan that is optimal under the cost model's closed formula, with its proof.

The value of a plan is a sum over its stages (latency) plus a maximum over its stages (load). For a threshold
T, a dynamic programme over (layers left, devices used, place of the stage before) from the last layer
backwards finds the least sum L(T) among plans whose every load is at most T; knowing the devices behind a
stage, it knows the units in flight, hence memory and window, exactly. L falls as T rises, so on any interval
(a, b] no plan is better than L(b) + a: branch and bound over T is exact. To a given tolerance, relative 1e-9.

Assumptions: stages are runs of the graph's order of layers (skips are priced where they arrive, over the
link from the stage before); micro-batches are dealt by speed. Work per threshold grows with the pairs of
sets of devices, so this solver is for small clusters.

Source: the threshold is that of Zheng et al., "Alpa", OSDI 2022, equation 3, there enumerated; the state
with device types and replicas behind a cut follows Narayanan et al., "PipeDream", SOSP 2019, section 3.1.
"""

import heapq
import itertools
import math
from dataclasses import dataclass

import numpy as np

from stagewright.document import InputError
from stagewright.optimizer.costs.cost import FloatArray, IntArray
from stagewright.optimizer.costs.tables import Devices, StageTables
from stagewright.optimizer.problem import Problem, StageChoice

from .solution import Solution, space_of

TOLERANCE = 1e-9
MOST_WORK = 4e8
"""Entries of tables per threshold: about ten seconds for one threshold."""

State = tuple[Devices, int, int]
"""Devices used by the stages from here on, stages left to use (0 if unlimited), place of the stage before."""


@dataclass(frozen=True)
class _Found:
    """The best plan under a threshold."""

    sum_ms: float
    load_ms: float
    stages: tuple[StageChoice, ...]


def solve(problem: Problem, *, most_thresholds: int = 2000) -> Solution | None:
    """Return the optimal plan; None if no plan fits into memory.

    After most_thresholds thresholds the best plan so far is returned, with the bound proven by then.

    Raises:
        InputError: the cluster is too large for this solver.
    """
    search = _Search(problem)
    weight = 1.0 if problem.objective == "step-time" else 0.0
    best = search.best_under(math.inf)
    if best is None:
        return None
    best_ms = weight * best.sum_ms + best.load_ms
    # Open intervals (bound, low, high, sum): each plan with a load in (low, high] has at least that sum.
    open_intervals = [(weight * best.sum_ms, 0.0, best.load_ms, best.sum_ms)]
    while open_intervals and search.thresholds < most_thresholds:
        _, low, high, least_sum = heapq.heappop(open_intervals)
        high = min(high, best_ms * (1 - TOLERANCE) - weight * least_sum)
        found = search.best_under(high) if high > low else None
        if found is None:
            continue
        value_ms = weight * found.sum_ms + found.load_ms
        if value_ms < best_ms:
            best, best_ms = found, value_ms
        # Plans with a load in (found.load_ms, high] have at least found's sum, so they are no better.
        middle = (low + found.load_ms) / 2
        for start, end in ((low, middle), (middle, found.load_ms)):
            if end > start:
                bound = weight * found.sum_ms + start
                heapq.heappush(open_intervals, (bound, start, end, found.sum_ms))
    bound_ms = min([best_ms, *(interval[0] for interval in open_intervals)])
    if bound_ms >= best_ms * (1 - TOLERANCE):
        bound_ms = best_ms
    return Solution(
        solver="exact",
        stages=best.stages,
        value_ms=best_ms,
        bound_ms=bound_ms,
        space=space_of(problem),
        evaluated=search.thresholds,
    )


@dataclass(frozen=True)
class _Column:
    """The best plans of one state from each layer on; (L + 1,) each."""

    sums: FloatArray
    """Latency with messages; infinite where there is no plan."""
    device_sets: IntArray
    """The first stage's, as an index into StageTables.device_sets."""
    ends: IntArray
    """The layer behind the first stage."""


class _Allowed:
    """Latencies of the stages that are allowed under one threshold; infinite for the others."""

    def __init__(self, tables: StageTables, threshold_ms: float) -> None:
        self.threshold_ms = threshold_ms
        self._tables = tables
        self._runs = np.triu(np.ones((tables.size + 1, tables.size + 1), dtype=bool), k=1)
        self._made: dict[tuple[Devices, int, int], FloatArray] = {}

    def latency_ms(self, devices: Devices, place: int, replicas_behind: int) -> FloatArray:
        key = (devices, place, replicas_behind)
        if key not in self._made:
            table = self._tables.table(devices, place)
            allowed = self._runs & (table.load_ms <= self.threshold_ms)
            allowed &= self._tables.fits(devices, place, replicas_behind)
            self._made[key] = np.where(allowed, table.latency_ms, math.inf)
        return self._made[key]


class _Search:
    """The dynamic programme, for any threshold."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.tables = StageTables(problem)
        self.thresholds = 0
        """How many were tried."""
        sizes = [len(group.slots) for group in problem.groups]
        used = itertools.product(*(range(size + 1) for size in sizes))
        self.used: tuple[Devices, ...] = tuple(sorted(used, key=lambda d: (sum(d), d)))
        """Every set of devices, small ones first."""
        pairs = math.prod((size + 1) * (size + 2) // 2 for size in sizes)
        work = pairs * (len(problem.chain) + 1) ** 2 * len(self.tables.places)
        work *= problem.max_stages or 1
        if work > MOST_WORK:
            raise InputError(
                f"{problem.inputs.cluster_path}: {len(problem.chain)} layers on {problem.num_devices} "
                f"devices in {len(problem.groups)} groups need {work:.0e} table entries per threshold, "
                f"expected at most {MOST_WORK:.0e}; plan for fewer devices"
            )

    def best_under(self, threshold_ms: float) -> _Found | None:
        """Return the plan of least latency whose loads are at most a threshold; None if there is none.

        Of equals, one with the fewest devices.
        """
        self.thresholds += 1
        columns = self._fill(threshold_ms)
        limit = self.problem.max_stages or 0
        best: State | None = None
        best_ms = math.inf
        for used in self.used[1:]:
            sum_ms = float(columns[used, limit, 0].sums[0])
            if sum_ms < best_ms * (1 - TOLERANCE):
                best, best_ms = (used, limit, 0), sum_ms
        if best is None:
            return None
        stages = self._read(best, columns)
        return _Found(sum_ms=best_ms, load_ms=self._load_ms(stages), stages=stages)

    def _fill(self, threshold_ms: float) -> dict[State, _Column]:
        """Return the column of every state, those of small sets of devices first."""
        size, places = self.tables.size, range(len(self.tables.places))
        limits = range(1, self.problem.max_stages + 1) if self.problem.max_stages else range(1)
        nothing_left = np.full(size + 1, math.inf)
        nothing_left[size] = 0.0
        end = _Column(nothing_left, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
        columns = {(self.used[0], limit, place): end for limit in (0, *limits) for place in places}
        allowed = _Allowed(self.tables, threshold_ms)
        for limit, used, place in itertools.product(limits, self.used[1:], places):
            columns[used, limit, place] = self._column((used, limit, place), columns, allowed)
        return columns

    def _column(self, state: State, columns: dict[State, _Column], allowed: _Allowed) -> _Column:
        """Return the best first stage of a state, from every layer on."""
        used, limit, place = state
        size, tables = self.tables.size, self.tables
        rows = np.arange(size + 1)
        column = _Column(np.full(size + 1, math.inf), np.zeros_like(rows), np.zeros_like(rows))
        for number, devices in enumerate(tables.device_sets):
            left = _minus(used, devices)
            behind = columns.get((left, max(limit - 1, 0), tables.place_of(devices)))
            if behind is None:
                continue
            total = allowed.latency_ms(devices, place, sum(used)) + behind.sums
            if allowed.threshold_ms < math.inf:
                slope, intercept = tables.window(devices, place, sum(used))
                behind_ms = np.where(behind.sums < math.inf, behind.sums, 0.0)
                window_ms = (slope * behind_ms + intercept).max(axis=0)
                total = np.where(window_ms <= allowed.threshold_ms, total, math.inf)
            total = total + tables.table(devices, place).incoming_ms
            ends = np.argmin(total, axis=1)
            sums = total[rows, ends]
            better = sums < column.sums
            column.sums[better] = sums[better]
            column.device_sets[better] = number
            column.ends[better] = ends[better]
        return column

    def _read(self, state: State, columns: dict[State, _Column]) -> tuple[StageChoice, ...]:
        """Return the stages of the best plan of a state from the first layer on."""
        stages: list[StageChoice] = []
        used, limit, place = state
        first = 0
        while first < self.tables.size:
            column = columns[used, limit, place]
            devices = self.tables.device_sets[column.device_sets[first]]
            last = int(column.ends[first])
            stages.append(StageChoice(first, last, devices))
            used, limit = _minus(used, devices), max(limit - 1, 0)
            place, first = self.tables.place_of(devices), last
        return tuple(stages)

    def _load_ms(self, stages: tuple[StageChoice, ...]) -> float:
        """Return the largest load of a plan, with the same roundings as the search."""
        most = behind_ms = 0.0
        replicas_behind = 0
        for index in reversed(range(len(stages))):
            stage = stages[index]
            place = self.tables.place_of(stages[index - 1].devices) if index else 0
            table = self.tables.table(stage.devices, place)
            at = (stage.first, stage.last)
            replicas_behind += sum(stage.devices)
            slope, intercept = self.tables.window(stage.devices, place, replicas_behind)
            window_ms = slope[:, *at] * behind_ms + intercept[:, *at]
            most = max(most, float(table.load_ms[at]), float(window_ms.max()))
            behind_ms += float(table.latency_ms[at])
            behind_ms += float(table.incoming_ms[at])
        return most


def _minus(first: Devices, second: Devices) -> Devices:
    return tuple(a - b for a, b in zip(first, second, strict=True))
