"""Objective cost: bounds of price x time by what stages are charged in boxes of step time and sum of times.

A plan pays for all its devices all the time: sum over stages s of r_s p_s T for r_s devices of price p_s. In
a box of plans whose step time T is in (a, b] and whose sum of times is in (c, d], T is at least a, and at
least load_s + c: so stage s is charged at least r_s p_s max(a, load_s + c), and its load is at most b - c.
That is a sum over stages, so the cheapest path bounds it, with prices for devices, stages, money and time as
in prices.py. Boxes are halved, the one with the least bound first. Plans are looked for along the cheapest
paths: balanced stages are charged what they cost, so these are close to the best plans.
"""

import heapq
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stagewright.optimizer.costs.cost import IntArray

from .chain import Chain
from .kernels.library import call_for_ms
from .prices import FAR
from .stage import stage_loads_ms, total_ms

TOLERANCE = 2e-9
MOST_BOXES = 4000
ROUNDS = 120
"""Of prices, per box."""
SMALL = 1e-6
"""Of the end of an interval from 0: where it is parted first."""
NARROW = 1e-11
"""Boxes of this relative size are not halved."""

Offer = Callable[[IntArray], float]
"""From rows (first, behind last, kind, replicas) to the least price x time of all plans offered so far."""


@dataclass(frozen=True)
class Box:
    """Plans whose step time is in (least, most] and whose sum of times is in (shortest, longest]."""

    least_ms: float
    most_ms: float
    shortest_ms: float
    longest_ms: float

    def halves(self) -> "list[Box]":
        """Return two boxes with the same plans, told apart by what loosens the bound more."""
        of_step = 1 - self.least_ms / self.most_ms
        of_sum = (self.longest_ms - self.shortest_ms) / max(self.least_ms, self.longest_ms)
        if max(of_step, of_sum) < NARROW:
            return []
        if of_step > of_sum:
            least_ms = max(self.least_ms, self.shortest_ms, SMALL * self.most_ms)
            middle = math.sqrt(least_ms * self.most_ms)
            parts = [
                Box(self.least_ms, middle, self.shortest_ms, min(self.longest_ms, middle)),
                Box(middle, self.most_ms, self.shortest_ms, self.longest_ms),
            ]
        else:
            middle = math.sqrt(max(self.shortest_ms, SMALL * self.longest_ms) * self.longest_ms)
            parts = [
                Box(self.least_ms, self.most_ms, self.shortest_ms, middle),
                Box(max(self.least_ms, middle), self.most_ms, middle, self.longest_ms),
            ]
        return [b for b in parts if b.least_ms < b.most_ms and b.shortest_ms < b.longest_ms]


class ChargeSearch:
    """One search; `bound` is what is proven so far."""

    def __init__(self, chain: Chain, most_ms: float, value: float, offer: Offer) -> None:
        self.chain, self.value, self.offer = chain, value, offer
        self.open: list[tuple[float, int, Box]] = []
        self.left: list[float] = []
        self.serial = self.boxes = 0
        self._push(0.0, Box(0.0, most_ms, 0.0, most_ms))

    @property
    def bound(self) -> float:
        """No plan costs less (price per hour x ms)."""
        return min([self.value, *self.left, *(entry[0] for entry in self.open)])

    def run(self, until: float) -> None:
        """Search until the value is proven or time is up (by time.perf_counter)."""
        while self.open and self.open[0][0] < self.value * (1 - TOLERANCE):
            if time.perf_counter() > until or self.boxes > MOST_BOXES:
                return
            least, _, box = self.open[0]
            parts = box.halves()
            if not parts:
                self.left.append(least)
            bounds = [self._bound(part) for part in parts]
            heapq.heappop(self.open)
            for part, bound in zip(parts, bounds, strict=True):
                self._push(max(least, bound), part)

    def _push(self, bound: float, box: Box) -> None:
        if bound < self.value * (1 - TOLERANCE):
            self.serial += 1
            heapq.heappush(self.open, (bound, self.serial, box))

    def _bound(self, box: Box) -> float:
        """Return what no plan of a box costs less than; offer the plans close to its cheapest path."""
        costs, self.boxes = self.chain.costs, self.boxes + 1
        money = costs.budget if math.isfinite(costs.budget) else 0.0
        capacity = np.array([*costs.counts.astype(float), float(self.chain.max_stages), money, 0.0])
        ends = np.array([box.least_ms, box.most_ms, box.shortest_ms, box.longest_ms])
        prices, number = np.zeros(len(capacity)), np.zeros(1, dtype=np.int64)
        rows = np.zeros((costs.num_cuts, 4), dtype=np.int64)
        target, rounds = (self.value, ROUNDS) if math.isfinite(self.value) else (FAR, 1)
        bound = call_for_ms(
            "charge_by_prices", costs, ends, prices, capacity, target, rounds, rows, number
        )
        if bound < FAR and number[0]:
            self._try(np.ascontiguousarray(rows[: number[0]][::-1]), box)
        return bound

    def _try(self, rows: IntArray, box: Box) -> None:
        """Offer the stages of a path with the replicas that some largest load needs."""
        costs, (steps,) = self.chain.costs, np.nonzero(self.chain.costs.replicas)
        counts = costs.replicas[steps]
        every = np.repeat(rows, len(counts), axis=0)
        every[:, 3] = np.tile(counts, len(rows))
        loads = stage_loads_ms(costs, every).reshape(len(rows), len(counts))
        loads[counts[None, :] > costs.most[rows[:, 2]][:, None]] = math.inf
        sum_ms = total_ms(costs, rows)[1]
        best: tuple[float, IntArray] | None = None
        for load in np.unique(loads[loads + sum_ms <= box.most_ms]):
            chosen = (loads <= load).argmax(axis=1)
            if not (loads <= load).any(axis=1).all():
                continue
            tried = rows.copy()
            tried[:, 3] = counts[chosen]
            price = float((tried[:, 3] * costs.hourly[costs.type_of[tried[:, 2]]]).sum())
            used = np.bincount(costs.type_of[tried[:, 2]], tried[:, 3], len(costs.counts))
            if (used > costs.counts).any() or price > costs.budget:
                continue
            value = price * (float(load) + sum_ms)
            if best is None or value < best[0]:
                best = value, tried
        if best is not None and best[0] < self.value:
            self.value = min(self.value, self.offer(best[1]))
