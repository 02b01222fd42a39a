"""Objective step-time: sum of times plus largest load, by branch and bound over the largest load.

For plans whose load is in (low, high], prices bound the sum of times by that of all plans within high, so no
such plan is better than low + bound. The most promising interval is searched for the plan of least time
within high, by labels, and halved unless that proves that it holds no better plan.
"""

import heapq
import itertools
import math
import time
from dataclasses import dataclass, replace

import numpy as np

from stagewright.optimizer.costs.cost import FloatArray, IntArray
from stagewright.optimizer.problem import StageChoice

from .arcs import find_arcs
from .chain import Chain
from .decide import Answer, Bound, search_plan, time_bound, useful_arcs
from .found import Found, Leaf
from .prices import FAR
from .stage import total_ms

TOLERANCE = 1e-9
FIRST_BEAM = 100
WIDE_BEAMS = (400, 2000)
FIRST_WORK = 10_000_000
"""Labels of a cut times arcs: beams are narrower where there are many arcs, a quarter of a second."""
LEAST_BEAM = 8
MOST_ROOM = 400_000
GRID = (1.03, 1.15, 1.35, 1.7, 2.5, 6.0, 100.0, 1e4, 1e8)
RELAXED_PART = 0.6
"""Of the time, for the bound where servers make a difference."""
NARROW = 1e-3
"""Intervals of this part of the value are searched by labels without beam."""
BEAM_EVERY = 12
"""Of the wider ones only some are searched, with a beam, as prices halve them faster."""


@dataclass(frozen=True)
class _Interval:
    """Plans whose load is above low_ms and at most high_ms."""

    low_ms: float
    high_ms: float
    time_ms: float
    """None has a smaller sum of times."""
    bound: Bound
    """What prices alone prove of it, for the certificate."""


class StepTimeSearch:
    """One search; `run` leaves the result in `found`."""

    def __init__(self, bounds: Chain, plans: Chain, found: Found) -> None:
        self.bounds, self.plans, self.found = bounds, plans, found
        self.open: list[tuple[float, int, _Interval]] = []
        self.serial = self.num_splits = 0
        self.best_load_ms = 0.0
        self.prices: FloatArray = np.zeros(len(bounds.costs.counts) + 4)

    def run(self) -> None:
        """Search until the plan is proven or time is up."""
        if not self.plans.is_exact:
            self._relax()
        self._first_plans()
        found = self.found
        if found.stages and self.plans.is_exact:
            self._prove()
        self._improve()

    def _relax(self) -> None:
        """Bound the value by the best plan at optimistic costs; try the plans found on the way."""
        bounds, found, now = replace(self.bounds, is_exact=True), self.found, time.perf_counter()

        def evaluate(rows: IntArray) -> tuple[float, tuple[StageChoice, ...]]:
            found.offer(rows)
            types, type_of = range(len(bounds.types)), bounds.costs.type_of
            stages = (
                StageChoice(first, last, tuple(replicas * (type_of[kind] == k) for k in types))
                for first, last, kind, replicas in rows.tolist()
            )
            return self._relaxed_value_ms(rows), tuple(stages)

        relaxed = Found(evaluate, now + RELAXED_PART * (found.deadline - now))
        try:
            type(self)(bounds, bounds, relaxed).run()
        finally:
            found.bound_ms, found.leaves = relaxed.bound_ms, relaxed.leaves
            found.closed_by_labels = relaxed.closed_by_labels
            found.is_infeasible = relaxed.is_infeasible
            found.thresholds += relaxed.thresholds

    def _relaxed_value_ms(self, rows: IntArray) -> float:
        """Return the objective of a plan at the costs of the bounds."""
        return sum(total_ms(self.bounds.costs, rows))

    def _prove(self) -> None:
        """Raise the bound to the value."""
        found = self.found
        root_ms = found.value_ms
        root = self._bound(root_ms, 0.0)
        found.leaves = [Leaf(root_ms, Bound(math.inf, 0.0, np.zeros_like(root.prices), False))]
        self._push(_Interval(0.0, root_ms, root.value, root))
        try:
            while self.open and not found.is_late and not self._is_proven():
                self._split(heapq.heappop(self.open)[2])
        finally:
            self._is_proven()
            left = sorted(self.open, key=lambda entry: entry[1])
            found.leaves += [Leaf(i.low_ms, i.bound) for _, _, i in left]

    def _improve(self) -> None:
        """Use the time that is left on plans, with wider beams, where the bound cannot be raised."""
        found, load_ms = self.found, self.best_load_ms
        for beam, factor in itertools.product(WIDE_BEAMS, (1.0, 0.97, 1.03, 1.06, 1.1)):
            if found.gap <= TOLERANCE or found.is_late:
                return
            self._try(load_ms * factor, math.inf, beam)

    def _is_proven(self) -> bool:
        """Update the bound; return whether it has reached the value."""
        found = self.found
        least = self.open[0][0] if self.open else found.value_ms
        proven = least >= found.value_ms * (1 - TOLERANCE)
        found.bound_ms = found.value_ms if proven else max(found.bound_ms, least)
        return proven

    def _first_plans(self) -> None:
        """Offer plans found with a beam, from the least thresholds that have one to high ones.

        If there are none, with wider beams, and at last without one.
        """
        for beam in (FIRST_BEAM, *WIDE_BEAMS, 0):
            if self.found.stages or (self.found.is_late and beam != FIRST_BEAM):
                return
            self._first_plans_of(beam)
            if self.found.is_infeasible:
                return

    def _first_plans_of(self, beam: int) -> None:
        least_ms = self.plans.all_busy_ms or 1e-6
        for factor in GRID:
            if self.found.stages and factor > 3 and least_ms * factor > self.found.value_ms:
                return
            if self.found.is_late and (self.found.stages or beam != FIRST_BEAM):
                return
            answer, _ = self._try(least_ms * factor, math.inf, beam)
        # The last threshold limits nothing but memory, money and what the user fixed.
        found, is_complete = self.found, answer.plan is None and answer.is_complete
        found.is_infeasible |= not found.stages and is_complete and self.plans.is_exact

    def _bound(self, threshold_ms: float, low_ms: float) -> Bound:
        """Return prices for the plans within a threshold; enough if they rule out loads above low_ms."""
        self.found.thresholds += 1
        arcs = find_arcs(self.bounds.costs, threshold_ms)
        target = self.found.value_ms - low_ms
        bound = time_bound(self.bounds, threshold_ms, arcs, self.prices, target, 200)
        if bound.value < FAR:
            self.prices = bound.prices
        return bound

    def _push(self, interval: _Interval) -> None:
        value = interval.low_ms + interval.time_ms
        if value >= self.found.value_ms * (1 - TOLERANCE):
            self._close(interval)
            return
        self.serial += 1
        heapq.heappush(self.open, (value, self.serial, interval))

    def _close(self, interval: _Interval) -> None:
        self.found.leaves.append(Leaf(interval.low_ms, interval.bound))
        by_prices = interval.low_ms + interval.bound.value >= self.found.value_ms * (1 - TOLERANCE)
        self.found.closed_by_labels |= not by_prices

    def _split(self, interval: _Interval) -> None:
        """Search an interval for a better plan, and halve what is left of it."""
        found, low_ms = self.found, interval.low_ms
        # A better plan has a sum of at least the bound, hence a smaller load than this.
        high_ms = min(interval.high_ms, found.value_ms - interval.time_ms)
        if high_ms <= low_ms:
            self._close(interval)
            return
        time_ms = interval.time_ms
        narrow = self.plans.is_exact and high_ms - low_ms < NARROW * found.value_ms
        self.num_splits += 1
        answer, load_ms = Answer(None, math.inf, False), math.inf
        if narrow or self.num_splits % BEAM_EVERY == 1:
            beam = 0 if narrow else FIRST_BEAM
            answer, load_ms = self._try(high_ms, found.value_ms - low_ms, beam)
        if answer.is_complete and self.plans.is_exact:
            if answer.plan is None:
                self._close(interval)
                return
            # All plans of a larger load take at least as long, so they are no better.
            time_ms, high_ms = max(time_ms, answer.time_ms), min(high_ms, load_ms)
            if high_ms <= low_ms:
                self._close(interval)
                return
        middle = (low_ms + high_ms) / 2
        if not low_ms < middle < high_ms:
            found.is_stuck = True
            self.serial += 1
            heapq.heappush(self.open, (low_ms + time_ms, self.serial, interval))
            return
        lower = self._bound(middle, low_ms)
        self._push(_Interval(low_ms, middle, max(time_ms, lower.value), lower))
        self._push(_Interval(middle, high_ms, time_ms, interval.bound))

    def _try(
        self, threshold_ms: float, cutoff_ms: float, beam: int = FIRST_BEAM
    ) -> tuple[Answer, float]:
        """Offer the plan of least time within a threshold; return what is known, and the plan's load."""
        chain, found = self.plans, self.found
        found.thresholds += 1
        arcs = find_arcs(chain.costs, threshold_ms)
        target = min(cutoff_ms, found.value_ms)
        if math.isinf(target):
            target = 2.0 * float(chain.costs.compute_ms[:, -1, 0].max()) + 1e-3
        bound = time_bound(chain, threshold_ms, arcs, self.prices, target, 100)
        if bound.value >= min(FAR, cutoff_ms):
            return Answer(None, math.inf, True), math.inf
        if cutoff_ms < math.inf:
            arcs = useful_arcs(chain, arcs, bound, cutoff_ms)
        if beam == FIRST_BEAM:
            beam = min(beam, max(LEAST_BEAM, FIRST_WORK // max(len(arcs.tail), 1)))
        answer = search_plan(
            chain,
            arcs,
            bound,
            None,
            cutoff_ms=cutoff_ms,
            beam=beam,
            room=MOST_ROOM,
            until=found.until,
        )
        if answer.plan is None:
            return answer, math.inf
        evaluated = found.evaluate(answer.plan)
        load_ms = evaluated[0] - answer.time_ms if evaluated else math.inf
        if found.offer(answer.plan):
            self.best_load_ms = load_ms
        return answer, load_ms
