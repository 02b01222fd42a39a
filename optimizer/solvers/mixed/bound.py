"""Lower bounds by pricing devices, for stages of one or several types: valid for every plan.

At any price per device a stage of several types, whose replicas are dealt at most n_t micro-batches each,
costs at least one device of each of two types and e times the micro-batches that those leave, e the least
price per micro-batch: the fractional cover of M by its replicas. The cheapest path through the layers minus
what all devices cost bounds the sum of times of plans within the threshold, or says that there are none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stagewright.optimizer.costs.cost import FloatArray, IntArray
from stagewright.optimizer.solvers.labels.prices import FAR

from .cover import cheapest_covers
from .needs import Mixing, Needs


@dataclass(frozen=True)
class Prices:
    """As stagewright.certificate.PricedLoads, of the resources of labels/prices.py."""

    per_device: FloatArray
    """(K,)"""
    per_stage: float
    per_window: float
    per_ms: float
    per_money: float


@dataclass(frozen=True)
class Fares:
    """The least that stages between two cuts cost; (L + 1, L + 1), [last, first]."""

    fare: FloatArray
    choice: IntArray
    """Which kind of stage that is: of one type (V), or a variant, class and pair of types (Pricing.pairs)."""


@dataclass(frozen=True)
class _Mixed:
    """Stages of several types: of one variant, with one slowest type; (N,) each."""

    variant: int
    slowest: int
    last: IntArray
    first: IntArray
    dealt: IntArray
    """(N, K)"""
    time_ms: FloatArray


class Pricing:
    """Stages of one threshold at any prices."""

    def __init__(self, mixing: Mixing, needs: Needs) -> None:
        self.mixing, self.needs, self.costs = mixing, needs, mixing.chain.costs
        self.mixed = []
        for variant, slowest in np.ndindex(*needs.dealt.shape[:2]):
            dealt = needs.dealt[variant, slowest]
            last, first = np.nonzero((dealt > 0).any(axis=0))
            self.mixed.append(
                _Mixed(
                    variant,
                    slowest,
                    last,
                    first,
                    np.ascontiguousarray(dealt[:, last, first].T),
                    needs.mixed_ms[variant, slowest, last, first],
                )
            )

    def each(self, prices: Prices, *, is_first: bool = False) -> FloatArray:
        """Return (K,) what a device costs: with its part of the money, less by what it widens the window."""
        window = prices.per_window * self.needs.threshold_ms / self.costs.num_microbatches
        each: FloatArray = prices.per_device + prices.per_money * self.costs.hourly
        return each - (2 if is_first else 1) * window

    def per_ms(self, prices: Prices) -> float:
        """Return what a millisecond of a micro-batch costs."""
        return float(self.costs.is_step_time) + prices.per_window + prices.per_ms

    def fares(self, prices: Prices) -> Fares:
        """Return what stages cost at some prices."""
        fare, choice = self._fares(prices, is_first=False)
        if prices.per_window > 0:
            first, own = self._fares(prices, is_first=True)
            fare[:, 0], choice[:, 0] = first[:, 0], own[:, 0]
        return Fares(fare + prices.per_stage, choice)

    def _fares(self, prices: Prices, *, is_first: bool) -> tuple[FloatArray, IntArray]:
        each, kinds = self.each(prices, is_first=is_first), len(self.costs.type_of)
        # More replicas than needed widen the window, where that is worth more than they cost.
        credit = np.minimum(each, 0.0) * self.costs.counts
        each, of_kind = np.maximum(each, 0.0), self.costs.type_of
        per_ms = self.per_ms(prices)
        singles = per_ms * self.needs.time_ms + each[of_kind][:, None, None] * self.needs.replicas
        singles = np.where(
            self.needs.replicas > 0, singles + credit[of_kind][:, None, None], np.inf
        )
        choice = singles.argmin(axis=0)
        fare = singles.min(axis=0)
        for number, own in enumerate(self.mixed):
            at = (own.last, own.first)
            fixed, before = per_ms * own.time_ms + credit.sum(), fare[at]
            limits = before - fixed
            found, _ = cheapest_covers(
                own.dealt, each, self.costs.num_microbatches, own.slowest, limits
            )
            better = found < limits
            fare[at] = np.where(better, found + fixed, before)
            choice[at] = np.where(better, kinds + number, choice[at])
        return fare, choice

    def usage(
        self, prices: Prices, fares: Fares, last: int, first: int
    ) -> tuple[FloatArray, float]:
        """Return the devices (K,) of the cheapest stage between two cuts, and its time."""
        choice, kinds = int(fares.choice[last, first]), len(self.costs.type_of)
        if choice < kinds:
            use = np.zeros(self.mixing.chain.num_types)
            use[self.costs.type_of[choice]] = self.needs.replicas[choice, last, first]
            return use, float(self.needs.time_ms[choice, last, first])
        own = self.mixed[choice - kinds]
        row = int(np.flatnonzero((own.last == last) & (own.first == first))[0])
        _, replicas = cheapest_covers(
            own.dealt[row : row + 1],
            np.maximum(self.each(prices, is_first=first == 0), 0.0),
            self.costs.num_microbatches,
            own.slowest,
            np.full(1, FAR),
        )
        return replicas[0].astype(float), float(own.time_ms[row])

    def path_usage(
        self, prices: Prices, fares: Fares, stages: Sequence[tuple[int, int]]
    ) -> FloatArray:
        """Return what the stages of a path use of each resource."""
        use, kinds = np.zeros(self.mixing.chain.num_types + 4), self.mixing.chain.num_types
        part_ms = self.needs.threshold_ms / self.costs.num_microbatches
        for first, last in stages:
            own, time_ms = self.usage(prices, fares, last, first)
            use[:kinds] += own
            use[kinds + 2] += time_ms
            use[kinds + 1] -= part_ms * own.sum() if first == 0 else 0.0
        unused = self.mixing.chain.num_devices - use[:kinds].sum()
        use[kinds + 1] += use[kinds + 2] + part_ms * unused
        use[kinds] = len(stages)
        use[kinds + 3] = float(use[:kinds] @ self.costs.hourly)
        return use


def cheapest_path(fare: FloatArray) -> tuple[float, list[tuple[int, int]]]:
    """Return the cheapest path from the first cut to the last one, and its stages (first, last)."""
    size = len(fare) - 1
    least, before = np.full(size + 1, np.inf), np.zeros(size + 1, dtype=np.int64)
    least[0] = 0.0
    for last in range(1, size + 1):
        total = least[:last] + fare[last, :last]
        before[last] = first = total.argmin()
        least[last] = total[first]
    stages: list[tuple[int, int]] = []
    last = size
    while last > 0 and least[size] < np.inf:
        stages.append((int(before[last]), last))
        last = int(before[last])
    return float(least[size]), stages[::-1]


@dataclass(frozen=True)
class Bound:
    """The best that was proven under one threshold."""

    value: float
    """Throughput: above MARGIN if no plan is within it. Step-time: no plan within it has less time."""
    prices: Prices


def capacity_of(mixing: Mixing, threshold_ms: float) -> FloatArray:
    """Return how much there is of each resource (labels/prices.py); 0: it is not priced."""
    costs = mixing.chain.costs
    window, whole = 0.0, 0.0 if costs.is_step_time else threshold_ms
    if not (costs.is_step_time or costs.holds_all):
        window = threshold_ms * mixing.chain.num_devices / costs.num_microbatches
    money = costs.budget if np.isfinite(costs.budget) else 0.0
    stages = float(mixing.chain.max_stages)
    return np.array([*costs.counts.astype(float), stages, window, whole, money])


def prices_of(values: FloatArray) -> Prices:
    """Return a vector's prices."""
    per_stage, per_window, per_ms, per_money = values[-4:].tolist()
    return Prices(values[:-4], per_stage, per_window, per_ms, per_money)


def raise_bound(
    mixing: Mixing, needs: Needs, values: FloatArray, target: float, rounds: int
) -> tuple[Bound, FloatArray]:
    """Return the best bound that sub-gradient steps find from some prices on; stops above the target.

    The lengths of steps are Polyak's for step-time, multiplicative for throughput, as in labels/prices.py.
    """
    pricing, capacity = Pricing(mixing, needs), capacity_of(mixing, needs.threshold_ms)
    priced, is_step_time = capacity > 0, mixing.chain.costs.is_step_time
    whole = np.where(priced, capacity, 1.0)
    values = np.where(priced, values, 0.0)
    best, best_values, ease, since = -FAR, values, 1.0, 0
    for turn in range(rounds):
        if not is_step_time:
            values = values / (values @ capacity)
        prices = prices_of(values)
        fares = pricing.fares(prices)
        cheapest, stages = cheapest_path(fares.fare)
        if not stages:
            return Bound(FAR, prices), values
        bound = cheapest - float(values @ capacity) + float(values[-3] * capacity[-3])
        since = 0 if bound > best + 1e-7 * abs(best) else since + 1
        if bound > best:
            best, best_values = bound, values
        if best > target:
            break
        use = pricing.path_usage(prices, fares, stages)
        excess = np.where(priced, use / whole - 1.0, 0.0)
        if not is_step_time:
            factor = np.exp(0.5 / (turn + 1.0) * np.minimum(excess, 4.0))
            values = np.where(priced, np.maximum(1e-6 / whole, values * factor), 0.0)
            continue
        if since > 8:
            ease, since, values = ease * 0.5, 0, best_values
            if ease < 0.01:
                break
            continue
        norm = float(excess @ excess)
        if norm < 1e-16:
            break
        step = ease * (target - bound) / norm
        values = np.maximum(0.0, values * whole + step * excess) / whole
    return Bound(best, prices_of(best_values)), best_values
