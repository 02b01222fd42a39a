"""Solver `exact`: the plan that is optimal under the cost model's closed formula, with its proof.

The value of a plan is a sum over its stages (latency) plus a maximum over its stages (load). For a threshold
T, a dynamic programme over (layers left, devices used, place of the stage before) from the last layer
backwards finds the least sum L(T) among plans whose every load is at most T; knowing the devices behind a
stage, it knows the units in flight, hence memory and window, exactly. L falls as T rises, so on any interval
(a, b] no plan is better than L(b) + a: branch and bound over T is exact. To a given tolerance, relative 1e-9.

Assumptions: stages lie between nested cuts of the problem (skips are priced where they arrive, over the
link from the stage before); micro-batches are dealt by speed. Work per threshold grows with the pairs of
sets of devices, so this solver is for small clusters.

Source: the threshold is that of Zheng et al., "Alpa", OSDI 2022, equation 3, there enumerated; the state
with device types and replicas behind a cut follows Narayanan et al., "PipeDream", SOSP 2019, section 3.1.
"""

import bisect
import heapq
import itertools
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stagewright.certificate import Certificate, PricedLoads
from stagewright.document import InputError
from stagewright.optimizer.costs.cost import FloatArray, IntArray, has_flush
from stagewright.optimizer.costs.tables import Devices, StageTables
from stagewright.optimizer.problem import Problem, StageChoice

from .solution import Solution, certificate_for, space_of

TOLERANCE = 1e-9
MOST_WORK = 4e8
"""Entries of tables per threshold: about ten seconds for one threshold."""

Intervals = list[tuple[float, float | None]]
"""Of the load; None: no end."""
State = tuple[Devices, int, int]
"""Devices used by the stages from here on, stages left to use (0 if unlimited), place of the stage before."""


@dataclass(frozen=True)
class _Found:
    """The plan of least latency under a threshold."""

    load_ms: float
    stages: tuple[StageChoice, ...]


@dataclass(frozen=True)
class _Class:
    """Sets of devices on which a millisecond is worth the same."""

    weight: float
    """What a plan's time is multiplied with: the price of its devices, or 1."""
    sets: tuple[Devices, ...]
    """Small ones first."""


def solve(
    problem: Problem,
    time_limit_s: float | None = None,
    *,
    most_thresholds: int = 2000,
    below: float = math.inf,
) -> Solution | None:
    """Return the optimal plan; None if no plan fits into memory and obeys the constraints.

    After the time limit (once there is a plan, here or of the caller's), an interruption or most_thresholds
    thresholds the best plan so far is returned, with the bound proven by then.

    Args:
        below: only plans whose value (of objective cost: price per hour x ms) is less are of interest.

    Raises:
        InputError: the cluster is too large for this solver, or a price is missing.
    """
    deadline = math.inf if time_limit_s is None else time.perf_counter() + time_limit_s
    search = Search(problem)
    found = _Descent(search, below)
    try:
        while found.open and search.thresholds < most_thresholds:
            has_one = found.best is not None or below < math.inf
            if has_one and time.perf_counter() > deadline:
                break
            proven = found.open[0]
            found.step()
    except KeyboardInterrupt:
        if found.best is None:
            raise
        found.open.append(proven)
    if found.best is None:
        return None
    bound = min([found.value, *(interval[0] for interval in found.open)])
    if bound >= found.value * (1 - TOLERANCE):
        bound = found.value
    return Solution(
        solver="exact",
        stages=found.best.stages,
        value_ms=found.value / found.weight if found.weight else 0.0,
        bound_ms=bound / found.weight if found.weight else 0.0,
        space=space_of(problem),
        evaluated=search.thresholds,
        certificate=_certificate(problem, found),
    )


def _certificate(problem: Problem, found: "_Descent") -> Certificate | None:
    """Return the thresholds that prove a bound; None for objectives and constraints that it does not know."""
    is_told = problem.objective != "cost" and not problem.is_fixed_by_user
    if not is_told or problem.constraints.most_devices is not None or not found.known:
        return None
    bound_ms, intervals = found.known.get(problem.most_load_ms, 0.0), Intervals([(0.0, None)])
    if not problem.is_inference:
        bound_ms, intervals = intervals_of(
            found.known, found.ends, found.value, is_sum=has_flush(problem.objective)
        )
    types = dict.fromkeys(group.device_type for group in problem.groups)
    nothing = dict.fromkeys(types, 0.0)
    return certificate_for(
        problem,
        bound_ms,
        tuple(PricedLoads(above_ms=a, up_to_ms=b, per_device=nothing) for a, b in intervals),
        mixes_types=True,
        is_over_sets=True,
    )


def intervals_of(
    known: Mapping[float, float], ends: Iterable[float], value_ms: float, *, is_sum: bool
) -> tuple[float, Intervals]:
    """Return the best bound that some thresholds prove, and the fewest intervals of the load that do.

    Args:
        known: the least sums of times of plans within each threshold that was tried.
        ends: of intervals that the search told apart.
        is_sum: the objective is sum plus load, else the load alone.
    """
    if not is_sum:
        empty = [t for t, sum_ms in known.items() if sum_ms == math.inf and t <= value_ms]
        bound_ms = max(empty, default=0.0)
        return bound_ms, [(0.0, bound_ms)] if empty else []
    tried = sorted(known)
    cuts = sorted({0.0, value_ms, *(end for end in (*tried, *ends) if 0 < end < value_ms)})
    above = [
        known[tried[i]] if (i := bisect.bisect_left(tried, cut)) < len(tried) else 0.0
        for cut in cuts
    ]
    bound_ms = min([value_ms, *(low + s for low, s in zip(cuts, above[1:], strict=False))])
    intervals: Intervals = [(value_ms, None)]
    last = len(cuts) - 1
    while last > 0:
        first = last - 1
        while first > 0 and cuts[first - 1] + above[last] >= bound_ms:
            first -= 1
        intervals.append((cuts[first], cuts[last]))
        last = first
    return bound_ms, intervals


class _Descent:
    """Branch and bound over thresholds, for all classes of device sets at once."""

    def __init__(self, search: "Search", below: float) -> None:
        self.search = search
        self.best: _Found | None = None
        self.value = below
        self.weight = 1.0
        """Of the best plan's class."""
        problem = search.problem
        self.deadline_ms = problem.constraints.deadline_ms or math.inf
        self.sum_weight = 1.0 if has_flush(problem.objective) or problem.is_inference else 0.0
        self.load_weight = 0.0 if problem.is_inference else 1.0
        self.known: dict[float, float] = {}
        """The least latency of plans within each threshold that was tried; of the only class."""
        self.ends: set[float] = set()
        """Of the intervals that were told apart."""
        nothing = (0.0,) * len(search.classes)
        self.open = [(0.0, 0.0, problem.most_load_ms, nothing)] if nothing else []
        """Intervals (bound, low, high, sums): plans of class c with a load in (low, high] have at least
        latency sums[c]."""

    def step(self) -> None:
        """Look at the interval with the least bound."""
        bound, low, high, least = heapq.heappop(self.open)
        if bound >= self.value * (1 - TOLERANCE):
            self.open.clear()
            return
        high = min(high, max(self._highest_load(c, least[c]) for c in range(len(least))))
        if high <= low:
            return
        columns = self.search.fill(high)
        states = [self.search.best_state(columns, c.sets) for c in self.search.classes]
        self.known[high] = min(sum_ms for sum_ms, _ in states)
        sums = [math.inf] * len(states)
        loads = [-math.inf] * len(states)
        for index, (sum_ms, state) in enumerate(states):
            if state is None or self._bound(index, sum_ms, low) >= self.value * (1 - TOLERANCE):
                continue
            found = self.search.read(state, columns)
            self._offer(index, sum_ms, found)
            sums[index], loads[index] = sum_ms, found.load_ms
        # Plans of a class with a load in (loads[class], high] have at least the latency of the one found.
        top = max(loads)
        middle = (low + top) / 2
        self._push(tuple(sums), low, middle)
        above = (s if load > middle else math.inf for s, load in zip(sums, loads, strict=True))
        self._push(tuple(above), middle, top)

    def _offer(self, index: int, sum_ms: float, found: _Found) -> None:
        time_ms = self.sum_weight * sum_ms + self.load_weight * found.load_ms
        weight = self.search.classes[index].weight
        if weight * time_ms < self.value and time_ms <= self.deadline_ms * (1 + TOLERANCE):
            self.best, self.value, self.weight = found, weight * time_ms, weight

    def _push(self, sums: tuple[float, ...], low: float, high: float) -> None:
        self.ends.update((low, high))
        bound = min(self._bound(c, sums[c], low) for c in range(len(sums)))
        if low < high and bound < self.value * (1 - TOLERANCE):
            heapq.heappush(self.open, (bound, low, high, sums))

    def _bound(self, index: int, sum_ms: float, load_ms: float) -> float:
        """Return the least value of a class's plans with at least some latency and load."""
        time_ms = self.sum_weight * sum_ms + self.load_weight * load_ms
        if time_ms > self.deadline_ms * (1 + TOLERANCE):
            return math.inf
        return self.search.classes[index].weight * time_ms

    def _highest_load(self, index: int, sum_ms: float) -> float:
        """Return the load above which no plan of a class with at least some latency is better."""
        weight = self.search.classes[index].weight
        if self.load_weight == 0.0 or sum_ms == math.inf:
            return math.inf if sum_ms < math.inf else -math.inf
        time_ms = self.value * (1 - TOLERANCE) / weight if weight else math.inf
        return min(time_ms, self.deadline_ms * (1 + TOLERANCE)) - self.sum_weight * sum_ms


@dataclass(frozen=True)
class _Column:
    """The best plans of one state from each cut on; (n + 1,) each."""

    sums: FloatArray
    """Latency with messages; infinite where there is no plan."""
    kinds: IntArray
    """The first stage's, as an index into StageTables.stage_kinds."""
    ends: IntArray
    """The cut behind the first stage."""


class _Allowed:
    """Latencies of the stages that are allowed under one threshold; infinite for the others."""

    def __init__(self, tables: StageTables, threshold_ms: float) -> None:
        self.threshold_ms = threshold_ms
        self._tables = tables
        self._runs = np.triu(np.ones((tables.size + 1, tables.size + 1), dtype=bool), k=1)
        self._made: dict[tuple[Devices, int, int, bool], FloatArray] = {}

    def latency_ms(
        self, devices: Devices, place: int, replicas_behind: int, recompute: bool
    ) -> FloatArray:
        key = (devices, place, replicas_behind, recompute)
        if key not in self._made:
            table = self._tables.table(devices, place, recompute)
            allowed = self._runs & (table.load_ms <= self.threshold_ms)
            allowed &= self._tables.fits(devices, place, replicas_behind, recompute)
            allowed &= self._tables.allowed_stages(frozenset(self._tables.types_of(devices)))
            self._made[key] = np.where(allowed, table.latency_ms, math.inf)
        return self._made[key]


Columns = dict[State, _Column]


class Search:
    """The dynamic programme, for any threshold."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.tables = StageTables(problem)
        self.thresholds = 0
        """How many were tried."""
        sizes = [len(group.slots) for group in problem.groups]
        used = itertools.product(*(range(size + 1) for size in sizes))
        self.used: tuple[Devices, ...] = tuple(
            sorted((d for d in used if problem.may_use(d)), key=lambda d: (sum(d), d))
        )
        """Every set of devices, small ones first."""
        pairs = math.prod((size + 1) * (size + 2) // 2 for size in sizes)
        work = pairs * len(problem.cuts) ** 2 * len(self.tables.places)
        work *= problem.max_stages or 1
        if work > MOST_WORK:
            raise InputError(
                f"{problem.inputs.cluster_path}: {len(problem.cuts) - 1} cuts on {problem.num_devices} "
                f"devices in {len(problem.groups)} groups need {work:.0e} table entries per threshold, "
                f"expected at most {MOST_WORK:.0e}; plan for fewer devices"
            )

    @cached_property
    def classes(self) -> tuple[_Class, ...]:
        """The sets of devices, by what a millisecond on them is worth."""
        by_weight: dict[float, list[Devices]] = {}
        for used in self.used[1:]:
            weight = self.problem.worth_of_ms([used])
            by_weight.setdefault(weight, []).append(used)
        return tuple(_Class(weight, tuple(sets)) for weight, sets in sorted(by_weight.items()))

    def best_state(self, columns: Columns, sets: tuple[Devices, ...]) -> tuple[float, State | None]:
        """Return the least latency on some sets of devices and its state; of equals, the fewest devices."""
        limit = self.problem.max_stages or 0
        best: State | None = None
        best_ms = math.inf
        for used in sets:
            sum_ms = float(columns[used, limit, 0].sums[0])
            if sum_ms < best_ms * (1 - TOLERANCE):
                best, best_ms = (used, limit, 0), sum_ms
        return best_ms, best

    def fill(self, threshold_ms: float) -> Columns:
        """Return the column of every state, those of small sets of devices first."""
        self.thresholds += 1
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

    def _column(self, state: State, columns: Columns, allowed: _Allowed) -> _Column:
        """Return the best first stage of a state, from every layer on."""
        used, limit, place = state
        size, tables = self.tables.size, self.tables
        rows = np.arange(size + 1)
        column = _Column(np.full(size + 1, math.inf), np.zeros_like(rows), np.zeros_like(rows))
        for number, (devices, recompute) in enumerate(tables.stage_kinds):
            left = minus(used, devices)
            behind = columns.get((left, max(limit - 1, 0), tables.place_of(devices)))
            if behind is None:
                continue
            total = allowed.latency_ms(devices, place, sum(used), recompute) + behind.sums
            if allowed.threshold_ms < math.inf:
                slope, intercept = tables.window(devices, place, sum(used), recompute)
                behind_ms = np.where(behind.sums < math.inf, behind.sums, 0.0)
                window_ms = (slope * behind_ms + intercept).max(axis=0)
                total = np.where(window_ms <= allowed.threshold_ms, total, math.inf)
            total = total + tables.table(devices, place, recompute).incoming_ms
            ends = np.argmin(total, axis=1)
            sums = total[rows, ends]
            better = sums < column.sums
            column.sums[better] = sums[better]
            column.kinds[better] = number
            column.ends[better] = ends[better]
        return column

    def read(self, state: State, columns: Columns) -> _Found:
        """Return the best plan of a state from the first layer on."""
        stages: list[StageChoice] = []
        used, limit, place = state
        first = 0
        while first < self.tables.size:
            column = columns[used, limit, place]
            devices, recompute = self.tables.stage_kinds[column.kinds[first]]
            last = int(column.ends[first])
            stages.append(StageChoice(first, last, devices, recompute))
            used, limit = minus(used, devices), max(limit - 1, 0)
            place, first = self.tables.place_of(devices), last
        return _Found(self.load_ms(tuple(stages)), tuple(stages))

    def load_ms(self, stages: tuple[StageChoice, ...]) -> float:
        """Return the largest load of a plan, with the same roundings as the search."""
        most = behind_ms = 0.0
        replicas_behind = 0
        for index in reversed(range(len(stages))):
            stage = stages[index]
            place = self.tables.place_of(stages[index - 1].devices) if index else 0
            table = self.tables.table(stage.devices, place, stage.recompute)
            at = (stage.first, stage.last)
            replicas_behind += sum(stage.devices)
            slope, intercept = self.tables.window(
                stage.devices, place, replicas_behind, stage.recompute
            )
            window_ms = slope[:, *at] * behind_ms + intercept[:, *at]
            most = max(most, float(table.load_ms[at]), float(window_ms.max()))
            behind_ms += float(table.latency_ms[at])
            behind_ms += float(table.incoming_ms[at])
        return most


def minus(first: Devices, second: Devices) -> Devices:
    """Return the devices of one set without those of another; negative numbers if it lacks some."""
    return tuple(a - b for a, b in zip(first, second, strict=True))
