"""Objective cost: the price per hour of a plan's devices times its step time.

First by what stages are charged (charges.py), which mostly proves all; then by intervals of the price. For
plans whose price is in (low, high], the search for the least step time within a budget of `high` proves that
none takes less than some time, so none costs less than low x time. The plan of least time is offered; if it
costs p per hour and its time is proven, nothing in [p, high] is cheaper: the search goes on below p.
"""

import heapq
import math
import time
from dataclasses import dataclass

from stagewright.optimizer.costs.cost import FloatArray, IntArray
from stagewright.optimizer.problem import Problem, StageChoice
from stagewright.optimizer.solvers.fluid import every_cut_bound

from .chain import Chain
from .charges import TOLERANCE, ChargeSearch
from .found import Evaluate, Found
from .prices import FAR
from .step_time import StepTimeSearch

CHARGES_PART = 0.6
"""Of the time."""
NARROW = 1e-6
"""Intervals of the price of this relative width are not halved."""
WIDE = 0.05
"""Intervals of this relative width or more are halved, unless the plan of least time is that much cheaper."""
PART_OF_WIDTH = 0.2
"""A gap of this part of a wide interval's width will do, as its bound is that loose anyway."""
LEAST_PART = 0.05
"""Of the time that is left: what one interval's search may take at least."""


@dataclass(frozen=True)
class _Interval:
    """Plans whose price per hour is above low and at most high."""

    low: float
    high: float
    value: float
    """None costs less (price per hour x ms)."""


class MoneySearch:
    """One search; `run` leaves the best plan and the bound, as prices x ms, in this object."""

    def __init__(
        self, problem: Problem, chains: tuple[Chain, Chain], hourly: FloatArray, evaluate: Evaluate
    ) -> None:
        self.problem, self.chains, self.hourly = problem, chains, hourly
        self.evaluate = evaluate
        self.deadline_ms = problem.constraints.deadline_ms or math.inf
        self.stages: tuple[StageChoice, ...] = ()
        self.time_ms = self.value = math.inf
        self.thresholds = 0
        counts = chains[0].costs.counts
        most = min(float(hourly @ counts), problem.constraints.budget_per_hour or math.inf)
        self.most = most
        self.paid = every_cut_bound(problem, FAR, mixes_types=False)
        self.open = [(self.paid, 0, _Interval(0.0, most, self.paid))]
        self.left: list[float] = []
        """Bounds of intervals that could not be searched further."""
        self.serial = 0

    def run(self, deadline: float) -> None:
        """Search until the plan is proven or time is up (by time.perf_counter)."""
        now = time.perf_counter()
        self._search_by_charges(now + CHARGES_PART * (deadline - now))
        while self.open and self.open[0][0] < self.value * (1 - TOLERANCE):
            if self.stages and time.perf_counter() > deadline:
                return
            entry = self.open[0]
            self._look_at(entry[2], deadline)
            # Only now: an interruption must not lose the interval's bound.
            self.open.remove(entry)
            heapq.heapify(self.open)

    def _search_by_charges(self, until: float) -> None:
        bounds, plans = (chain.within(self.hourly, self.most) for chain in self.chains)

        def offer(rows: IntArray) -> float:
            self._offer(rows)
            return self.value

        most_ms = min(plans.most_load_ms, self.deadline_ms * (1 + TOLERANCE))
        charges = ChargeSearch(bounds, most_ms, self.value, offer)
        try:
            charges.run(until)
        finally:
            self.thresholds += charges.boxes
            bound = max(self.paid, charges.bound)
            self.open = [(bound, 0, _Interval(0.0, self.most, bound))]

    @property
    def is_exhausted(self) -> bool:
        """Whether every interval was searched to its end."""
        return not self.open and not self.left

    @property
    def bound(self) -> float:
        """No plan costs less (price per hour x ms)."""
        least = min([*self.left, *(entry[0] for entry in self.open)], default=self.value)
        return self.value if least >= self.value * (1 - TOLERANCE) else least

    def _push(self, low: float, high: float, value: float) -> None:
        if value < self.value * (1 - TOLERANCE):
            self.serial += 1
            heapq.heappush(self.open, (value, self.serial, _Interval(low, high, value)))

    def _look_at(self, interval: _Interval, deadline: float) -> None:
        """Search the plan of least time in an interval; add what is left of it."""
        low, high = interval.low, interval.high
        bounds, plans = (chain.within(self.hourly, high) for chain in self.chains)
        now = time.perf_counter()
        until = now + max(LEAST_PART, 1 / (2 + len(self.open))) * max(deadline - now, 0.0)
        enough_ms = min(self.deadline_ms, self.value / low if low > 0 else math.inf)
        width = 1 - low / high
        found = Found(
            self._offer,
            until,
            enough_ms=enough_ms * (1 + TOLERANCE),
            enough_gap=PART_OF_WIDTH * width if width > WIDE else 0.0,
        )
        try:
            StepTimeSearch(bounds, plans, found).run()
        finally:
            self.thresholds += found.thresholds
        if found.is_infeasible or found.bound_ms > self.deadline_ms * (1 + TOLERANCE):
            return
        if not found.stages:
            self.left.append(interval.value)
            return
        price = self._price(found.stages)
        value = max(interval.value, low * found.bound_ms)
        is_worth_it = width <= WIDE or price < (1 - WIDE) * high
        if low < price <= high and found.gap <= TOLERANCE and is_worth_it:
            self._push(low, price * (1 - TOLERANCE), value)
        elif high - low <= NARROW * high:
            self.left.append(value)
        else:
            middle = math.sqrt(low * high) if low > 0 else high / 2
            self._push(low, middle, value)
            self._push(middle, high, max(value, middle * found.bound_ms))

    def _offer(self, rows: IntArray) -> tuple[float, tuple[StageChoice, ...]] | None:
        """Return a plan's time and stages; keep it if it is the cheapest so far."""
        evaluated = self.evaluate(rows)
        if evaluated is None:
            return None
        time_ms, stages = evaluated
        value = self._price(stages) * time_ms
        if value < self.value and time_ms <= self.deadline_ms * (1 + TOLERANCE):
            self.stages, self.time_ms, self.value = stages, time_ms, value
        return evaluated

    def _price(self, stages: tuple[StageChoice, ...]) -> float:
        used = tuple(map(sum, zip(*(choice.devices for choice in stages), strict=True)))
        return self.problem.price_per_hour(used)
