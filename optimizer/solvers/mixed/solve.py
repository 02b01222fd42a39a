"""Stages of several types at scale: looks for plans better than the best one with one type per stage.

Where the exact programme over sets of devices would be too large, a plan with one type per stage comes
first (solvers/labels); bounds by prices that hold for stages of several types, too (bound.py), tell how much
better a plan could be, and a beam at these prices looks for such plans (plans.py).
"""

import contextlib
import heapq
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from stagewright.certificate import Certificate, PricedLoads
from stagewright.flushless import FLUSHLESS
from stagewright.optimizer.costs.choices import value_of
from stagewright.optimizer.costs.cost import FloatArray
from stagewright.optimizer.costs.tables import StageTables
from stagewright.optimizer.problem import Problem, StageChoice
from stagewright.optimizer.solvers.labels.chain import chain_costs
from stagewright.optimizer.solvers.labels.placement import largest_first, place
from stagewright.optimizer.solvers.labels.prices import FAR, MARGIN
from stagewright.optimizer.solvers.solution import Solution, certificate_for, space_of

from .bound import Prices, capacity_of, prices_of, raise_bound
from .needs import find_needs, mixing_of
from .plans import Rows, find_plans

ROUNDS = 60
"""Of prices, per threshold."""
CLOSE = 3e-4
"""Bounds are not told apart more closely than by this part of the value."""
MOST_THRESHOLDS = 40
BOUND_PART = 0.5
"""Of the time, for the bound."""
MOST_S = 20.0
PARTS = (0.02, 0.1, 0.25, 0.45, 0.65, 0.8, 0.95)
"""Of the way from the bound to the value: where plans are looked for."""


def may_mix(problem: Problem) -> bool:
    """Return whether there are stages of several types, and an objective that they are searched for."""
    types = {group.device_type for group in problem.groups}
    is_known = (
        problem.objective in ("step-time", "throughput") and problem.schedule not in FLUSHLESS
    )
    is_single = problem.num_microbatches == 1 or problem.constraints.straight
    return is_known and len(types) > 1 and not is_single


def with_mixed_stages(
    problem: Problem, solution: Solution, time_limit_s: float | None = None
) -> Solution:
    """Return a solution with one type per stage, or a better one; what bounds both is in mixed_bound_ms."""
    if not may_mix(problem):
        return solution
    search = _Search(problem, solution, min(MOST_S, time_limit_s or math.inf))
    with contextlib.suppress(KeyboardInterrupt):
        search.run()
    return search.result()


@dataclass(frozen=True)
class _Leaf:
    """Prices for the plans whose load is above low_ms and at most high_ms."""

    bound_ms: float
    low_ms: float
    high_ms: float
    prices: Prices

    def __lt__(self, other: "_Leaf") -> bool:
        return (self.bound_ms, self.low_ms) < (other.bound_ms, other.low_ms)


class _Search:
    def __init__(self, problem: Problem, solution: Solution, seconds: float) -> None:
        self.problem, self.first = problem, solution
        self.started, self.seconds = time.perf_counter(), seconds
        self.tables = StageTables(problem)
        chain = chain_costs(self.tables, optimistic=True)
        self.types = chain.types
        self.bounds = mixing_of(self.tables, chain)
        self.plans = [self.bounds]
        """At what costs plans are looked for: those of the bound may turn out too low, others too high."""
        if not chain.is_exact:
            expected = chain_costs(self.tables, optimistic=False)
            self.plans.append(mixing_of(self.tables, expected))
        self.stages, self.value_ms = solution.stages, solution.value_ms
        self.leaves: list[_Leaf] = []
        self.bound_ms = 0.0
        self.values = self._first_prices(solution)

    def _first_prices(self, solution: Solution) -> FloatArray:
        capacity = capacity_of(self.bounds, solution.value_ms)
        values = np.where(capacity > 0, 1.0 / np.where(capacity > 0, capacity, 1.0), 0.0)
        values[len(self.types) :] *= 1e-3
        if solution.certificate is not None:
            for interval in solution.certificate.intervals:
                if interval.up_to_ms is not None and any(interval.per_device.values()):
                    own = [interval.per_device[name] for name in self.types]
                    values[: len(own)] = own
        return values

    def _late(self, part: float = 1.0) -> bool:
        return time.perf_counter() - self.started > part * self.seconds

    def run(self) -> None:
        """Bound first, then plans."""
        if self.problem.objective == "throughput":
            self._bound_load()
        else:
            self._bound_sums()
        for threshold_ms in self._thresholds():
            if self._late() or self.bound_ms >= self.value_ms * (1 - CLOSE):
                return
            self._look_at(threshold_ms)

    def result(self) -> Solution:
        """Return what was found."""
        bound_ms = min(self.bound_ms, self.value_ms)
        first, certificate = self.first, self._certificate()
        if self.stages == first.stages:
            return replace(first, mixed_bound_ms=bound_ms, mixed_certificate=certificate)
        return replace(
            first,
            solver="labels, mixed stages",
            stages=self.stages,
            value_ms=self.value_ms,
            bound_ms=bound_ms,
            space=space_of(self.problem),
            mixes_types=True,
            certificate=certificate,
            mixed_bound_ms=bound_ms,
            mixed_certificate=certificate,
        )

    def _price(self, threshold_ms: float, target: float) -> tuple[float, Prices]:
        needs = find_needs(self.bounds, threshold_ms)
        bound, values = raise_bound(self.bounds, needs, self.values, target, ROUNDS)
        if bound.value < FAR:
            self.values = values
        return bound.value, bound.prices

    def _bound_load(self) -> None:
        """Find the largest threshold on the load that prices exclude."""
        low, high, step = 0.0, self.value_ms, 0.01
        threshold_ms = self.value_ms * (1 - 1e-6)
        while high - low > CLOSE * high and not self._late(BOUND_PART):
            margin, prices = self._price(threshold_ms, MARGIN)
            if margin > MARGIN:
                low = self.bound_ms = threshold_ms
                self.leaves = [_Leaf(threshold_ms, 0.0, threshold_ms, prices)]
            else:
                high = threshold_ms
            step *= 2
            threshold_ms = (low + high) / 2 if low > 0 else max(high * (1 - step), high / 2)

    def _bound_sums(self) -> None:
        """Bound the sum of times over intervals of the load."""
        nothing = prices_of(np.zeros_like(self.values))
        top = _Leaf(self.value_ms, self.value_ms, math.inf, nothing)
        open_ = [self._leaf(_Leaf(0.0, 0.0, self.value_ms, nothing))]
        for _ in range(MOST_THRESHOLDS):
            self.leaves, self.bound_ms = [*open_, top], open_[0].bound_ms
            leaf = open_[0]
            small = leaf.high_ms - leaf.low_ms < CLOSE * self.value_ms
            if small or leaf.bound_ms >= self.value_ms or self._late(BOUND_PART):
                return
            middle = (leaf.low_ms + leaf.high_ms) / 2
            upper = replace(leaf, bound_ms=leaf.bound_ms + middle - leaf.low_ms, low_ms=middle)
            heapq.heapreplace(open_, self._leaf(replace(leaf, high_ms=middle)))
            heapq.heappush(open_, upper)

    def _leaf(self, leaf: _Leaf) -> _Leaf:
        """Return an interval with the bound that prices for it prove, or its own if that is better."""
        sum_ms, prices = self._price(leaf.high_ms, self.value_ms - leaf.low_ms)
        bound_ms = leaf.low_ms + max(sum_ms, 0.0)
        if bound_ms <= leaf.bound_ms:
            return leaf
        return replace(leaf, bound_ms=bound_ms, prices=prices)

    def _thresholds(self) -> Iterator[float]:
        """Yield thresholds at which plans may be found."""
        if self.problem.objective == "throughput":
            before_ms = math.inf
            while self.value_ms < before_ms:
                before_ms, low = self.value_ms, self.bound_ms
                for part in PARTS:
                    threshold_ms = low + part * (before_ms - low)
                    if threshold_ms < self.value_ms:
                        yield threshold_ms
            return
        finite = (leaf for leaf in sorted(self.leaves) if math.isfinite(leaf.high_ms))
        yield from dict.fromkeys(leaf.high_ms for leaf in finite)

    def _look_at(self, threshold_ms: float) -> None:
        """Take the best plan that a beam finds at a threshold, if it is better."""
        target = MARGIN if self.problem.objective == "throughput" else self.value_ms
        for mixing in self.plans:
            needs = find_needs(mixing, threshold_ms)
            bound, _ = raise_bound(mixing, needs, self.values, target, ROUNDS)
            for rows in find_plans(mixing, needs, bound.prices, self._late):
                for choices in self._placed(rows):
                    value_ms = value_of(self.tables, choices)
                    if value_ms is not None and value_ms < self.value_ms * (1 - 1e-9):
                        self.stages, self.value_ms = choices, value_ms

    def _placed(self, rows: Rows) -> Iterator[tuple[StageChoice, ...]]:
        """Yield ways to put a plan's stages on the servers."""
        types = range(len(self.types))
        wanted = [{self.types[k]: r[k] for k in types if r[k]} for *_, r in rows]
        orders = [(range(len(rows))[::-1], True), (largest_first(wanted), False)]
        for order, by_neighbour in orders[: 1 if self.bounds.chain.is_exact else 2]:
            devices = place(wanted, self.problem.groups, order, by_neighbour=by_neighbour)
            yield tuple(
                StageChoice(first, last, own, variant == 1)
                for (first, last, variant, _), own in zip(rows, devices, strict=True)
            )

    def _certificate(self) -> Certificate | None:
        """Return the certificate of the bound; None if the user fixed layers, or there is nothing to say."""
        problem = self.problem
        if not self.leaves or problem.is_fixed_by_user:
            return None
        intervals = tuple(self._priced(leaf) for leaf in self.leaves)
        return certificate_for(problem, self.bound_ms, intervals, mixes_types=True)

    def _priced(self, leaf: _Leaf) -> PricedLoads:
        prices = leaf.prices
        return PricedLoads(
            above_ms=leaf.low_ms,
            up_to_ms=leaf.high_ms if math.isfinite(leaf.high_ms) else None,
            per_device=dict(zip(self.types, prices.per_device.tolist(), strict=True)),
            per_stage=prices.per_stage,
            per_window=prices.per_window,
            per_ms=prices.per_ms,
            per_money=prices.per_money,
        )
