"""Objective latency: the least sum of times within one threshold, the period's; nothing waits for a backward.

Prices bound the sum of times, a beam finds plans, and labels without beam close what is left between them.
"""

import math

from stagewright.optimizer.costs.cost import IntArray

from .arcs import find_arcs
from .decide import capacity_of, even_prices
from .found import Leaf
from .prices import MARGIN, raise_prices
from .stage import total_ms
from .step_time import FIRST_BEAM, TOLERANCE, WIDE_BEAMS, StepTimeSearch

ROUNDS = 150
"""Of prices."""


class LatencySearch(StepTimeSearch):
    """One search; `run` leaves the result in `found`."""

    @property
    def threshold_ms(self) -> float:
        return self.plans.most_load_ms

    def run(self) -> None:
        """Search until the plan is proven or time is up."""
        self.found.is_infeasible = self._is_impossible()
        if not self.found.is_infeasible:
            super().run()

    def _is_impossible(self) -> bool:
        """Return whether prices prove that too few devices keep the threshold, whatever the times sum to."""
        capacity = capacity_of(self.bounds, self.threshold_ms)
        timeless = self.bounds.costs._replace(is_latency=False)
        arcs = find_arcs(self.bounds.costs, self.threshold_ms)
        prices = even_prices(capacity)
        margin, _ = raise_prices(timeless, self.threshold_ms, arcs, prices, capacity, ROUNDS)
        return margin > MARGIN

    def _relaxed_value_ms(self, rows: IntArray) -> float:
        return total_ms(self.bounds.costs, rows)[1]

    def _first_plans_of(self, beam: int) -> None:
        answer, _ = self._try(self.threshold_ms, math.inf, beam)
        found, is_complete = self.found, answer.plan is None and answer.is_complete
        found.is_infeasible |= not found.stages and is_complete and self.plans.is_exact

    def _prove(self) -> None:
        found = self.found
        bound = self._bound(self.threshold_ms, 0.0)
        found.leaves = [Leaf(0.0, bound)]
        found.bound_ms = max(found.bound_ms, min(bound.value, found.value_ms))
        for beam in (*WIDE_BEAMS, 0):
            if found.gap <= TOLERANCE or found.is_late:
                return
            answer, _ = self._try(self.threshold_ms, found.value_ms, beam)
            if answer.is_complete:
                found.bound_ms, found.closed_by_labels = found.value_ms, True

    def _improve(self) -> None:
        found = self.found
        for beam in (FIRST_BEAM, *WIDE_BEAMS):
            if found.gap <= TOLERANCE or found.is_late:
                return
            self._try(self.threshold_ms, math.inf, beam)
