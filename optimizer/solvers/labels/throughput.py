"""Objective throughput: the least threshold that some plan is within, by bisection from both sides."""

import math

import numpy as np

from stagewright.optimizer.costs.cost import FloatArray

from .arcs import find_arcs
from .arrays import Arcs
from .chain import Chain
from .decide import (
    Answer,
    Bound,
    capacity_of,
    even_prices,
    indexed_bound,
    search_plan,
    throughput_bound,
    useful_arcs,
)
from .found import Found, Leaf
from .indexed import find_runs
from .prices import MARGIN

TOLERANCE = 1e-9
FIRST_BEAM = 200
WIDE_BEAM = 1600
MOST_BEAM = 100_000
STEPS = (1e-5, 1e-4)
"""Least and first relative step above a bound that labels exclude."""
TIGHT = 1.002
"""Memory counts as tight if replica-indexed prices raise the bound by this factor."""


class ThroughputSearch:
    """One search; `run` leaves the result in `found`."""

    def __init__(self, bounds: Chain, plans: Chain, found: Found) -> None:
        self.bounds, self.plans, self.found = bounds, plans, found
        self.prices: FloatArray = np.zeros(0)
        self.indexed = False
        """Whether replica-indexed prices are worth their time: memory is tight."""
        self.low_ms = 0.0
        self.most_ms = math.inf
        """No load is as much: beyond it nothing but memory, money and what the user fixed rules out plans."""

    def run(self) -> None:
        """Search until the plan is proven or time is up."""
        found = self.found
        high_ms = self._bracket()
        if math.isinf(high_ms):
            found.is_infeasible = True
            return
        self._raise_bound(high_ms, rounds=150)
        self._look_at_memory()
        if self.indexed and self.plans.is_exact:
            self._climb()
        if not found.is_infeasible:
            self._first_plan()
            self._close()
        found.is_infeasible = not found.stages and self.low_ms > self.most_ms

    def _climb(self) -> None:
        """Exclude thresholds from the bound on: close above it few labels are left, and none is cut off."""
        found, beam, (least, step) = self.found, WIDE_BEAM, STEPS
        while beam <= MOST_BEAM and not found.is_late:
            found.is_infeasible = not found.stages and self.low_ms > self.most_ms
            if found.is_infeasible:
                return
            top_ms = found.value_ms * (1 - TOLERANCE)
            threshold_ms = self.low_ms * (1 + step)
            if threshold_ms * (1 + STEPS[1]) > top_ms:
                threshold_ms = top_ms
            answer = self._decide(threshold_ms, beam)
            if found.offer(answer.plan):
                step /= 2
            elif answer.plan is None and answer.is_complete:
                if threshold_ms == top_ms:
                    found.bound_ms = self.low_ms = found.value_ms
                    return
                step *= 2
            else:
                if not found.stages:
                    self._first_plan()
                step /= 4
                if threshold_ms == top_ms or step < least:
                    beam, step = beam * 8, STEPS[1]

    def _look_at_memory(self) -> None:
        """Turn to replica-indexed prices if they prove more."""
        before_ms, prices, self.indexed = self.low_ms, self.prices, True
        if not self._excludes(before_ms * TIGHT, 40):
            self.indexed, self.prices = False, prices
            return
        high_ms = before_ms * TIGHT
        while high_ms < 8 * before_ms and self._excludes(high_ms, 40):
            high_ms *= 1.05
        self._raise_bound(high_ms, rounds=30)

    def _bracket(self) -> float:
        """Return a threshold that prices do not exclude; infinity if memory excludes every one."""
        threshold_ms = 0.5 * self.bounds.all_busy_ms or 1e-6
        self.most_ms = self.bounds.most_load_ms
        for _ in range(200):
            self.prices = even_prices(capacity_of(self.bounds, threshold_ms))
            if not self._excludes(threshold_ms, 60):
                return threshold_ms
            if threshold_ms > self.most_ms:
                return math.inf
            threshold_ms *= 2
        return math.inf

    def _excludes(self, threshold_ms: float, rounds: int) -> bool:
        """Return whether prices prove that no plan is within a threshold; keep the proof."""
        self.found.thresholds += 1
        arcs = find_arcs(self.bounds.costs, threshold_ms)
        bound = self._bound(self.bounds, threshold_ms, arcs, rounds)
        if bound.value > MARGIN:
            self._proven(threshold_ms, bound)
            return True
        self.prices = bound.prices
        return False

    def _bound(self, chain: Chain, threshold_ms: float, arcs: Arcs, rounds: int) -> Bound:
        bound = throughput_bound(
            chain, threshold_ms, arcs, self.prices, 60 if self.indexed else rounds
        )
        if not self.indexed or bound.value > MARGIN:
            return bound
        arcs = useful_arcs(chain, arcs, bound, math.inf)
        return indexed_bound(
            chain, threshold_ms, arcs, find_runs(chain.costs, arcs), self.prices, rounds
        )

    def _proven(self, threshold_ms: float, bound: Bound | None) -> None:
        self.low_ms = max(self.low_ms, threshold_ms)
        self.found.bound_ms = max(self.found.bound_ms, threshold_ms)
        if bound is None:
            self.found.closed_by_labels = True
        elif not self.found.leaves or threshold_ms > self.found.leaves[0].bound.threshold_ms:
            self.found.leaves = [Leaf(0.0, bound)]
            self.found.closed_by_labels = self.low_ms > threshold_ms

    def _raise_bound(self, high_ms: float, rounds: int) -> None:
        """Bisect for the largest threshold that prices exclude."""
        while (high_ms - self.low_ms) > 1e-4 * high_ms and not self.found.is_late:
            middle = (self.low_ms + high_ms) / 2
            if not self._excludes(middle, rounds):
                high_ms = middle

    def _first_plan(self) -> None:
        gap = 5e-4
        while not self.found.stages and gap < 1e4 and not (self.found.is_late and gap > 1):
            threshold_ms = self.low_ms * (1 + gap)
            self.found.offer(self._decide(threshold_ms, FIRST_BEAM).plan)
            gap *= 2

    def _decide(self, threshold_ms: float, beam: int) -> Answer:
        """Return a plan within a threshold, or that there is none, or that none was found."""
        self.found.thresholds += 1
        chain = self.plans
        arcs = find_arcs(chain.costs, threshold_ms)
        bound = throughput_bound(chain, threshold_ms, arcs, self.prices, 80)
        runs = None
        if bound.value <= MARGIN:
            arcs = useful_arcs(chain, arcs, bound, math.inf)
            if self.indexed:
                runs = find_runs(chain.costs, arcs)
                bound = indexed_bound(chain, threshold_ms, arcs, runs, bound.prices, 30)
        if bound.value > MARGIN:
            if chain.is_exact:
                self._proven(threshold_ms, bound)
            return Answer(None, math.inf, True)
        answer = search_plan(
            chain, arcs, bound, runs, cutoff_ms=math.inf, beam=beam, until=self.found.until
        )
        if answer.plan is None and answer.is_complete and chain.is_exact:
            self._proven(threshold_ms, None)
        return answer

    def _close(self) -> None:
        """Bring plan and bound together."""
        found, beam = self.found, FIRST_BEAM
        unknown_ms = self.low_ms
        """Up to here this beam finds nothing."""
        while found.stages and found.value_ms - self.low_ms > TOLERANCE * found.value_ms:
            if found.is_late:
                return
            last = found.value_ms - unknown_ms <= 1e-4 * found.value_ms
            middle = (max(unknown_ms, self.low_ms) + found.value_ms) / 2
            threshold_ms = found.value_ms * (1 - TOLERANCE) if last else middle
            answer = self._decide(threshold_ms, beam)
            if found.offer(answer.plan):
                continue
            if answer.plan is None and answer.is_complete and self.plans.is_exact:
                unknown_ms = max(unknown_ms, threshold_ms)
                if last:
                    found.bound_ms = self.low_ms = found.value_ms
                    return
                continue
            unknown_ms = threshold_ms
            if last:
                if beam >= MOST_BEAM or (not self.plans.is_exact and beam > 8 * FIRST_BEAM):
                    return
                beam, unknown_ms = beam * 8, self.low_ms
