"""Decides one threshold: bounds by prices first, then labels on the arcs that are left."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from stagewright.optimizer.costs.cost import FloatArray, IntArray

from .arcs import keep_arcs
from .arrays import Arcs, Completions, Limits, Runs
from .chain import Chain
from .expand import Outcome, expand_labels
from .indexed import indexed_costs, raise_indexed_prices
from .prices import (
    all_fares,
    cheapest_from_start,
    cheapest_to_end,
    fares_of,
    raise_prices,
    raise_time_bound,
)
from .stop import stoppable

MOST_LABELS = 2_000_000
FEW = 1000
"""Narrower beams cut off most labels anyway."""
STRICT_DEVICES = 24
"""Up to so many devices a search that windows stopped is done again, with every number of replicas."""


@dataclass(frozen=True)
class Bound:
    """What prices prove about a threshold."""

    threshold_ms: float
    value: float
    """Throughput: the margin, above MARGIN if no plan is within the threshold; else the least time."""
    prices: FloatArray
    is_indexed: bool


@dataclass(frozen=True)
class Answer:
    """What is known about a threshold; plan None and is_complete: there is no (better) plan."""

    plan: IntArray | None
    time_ms: float
    is_complete: bool


def capacity_of(chain: Chain, threshold_ms: float) -> FloatArray:
    """Return how much there is of each resource (prices.py); 0: it is not priced."""
    costs = chain.costs
    stages, window, whole = float(chain.max_stages), 0.0, 0.0
    if not (costs.adds_times or chain.windows_are_implied):
        whole = threshold_ms if chain.units_are_dealt else 0.0
        if not costs.holds_all:
            window = threshold_ms * chain.num_devices / costs.num_microbatches
    money = costs.budget if math.isfinite(costs.budget) else 0.0
    return np.array([*costs.counts.astype(float), stages, window, whole, money])


def even_prices(capacity: FloatArray) -> FloatArray:
    """Return the prices at which every resource is worth the same, 1 in total."""
    priced = capacity > 0
    return np.where(priced, 1.0 / (priced.sum() * np.where(priced, capacity, 1.0)), 0.0)


def throughput_bound(
    chain: Chain, threshold_ms: float, arcs: Arcs, prices: FloatArray, rounds: int
) -> Bound:
    """Return the best margin found from some prices on."""
    capacity = capacity_of(chain, threshold_ms)
    prices = prices / (prices * capacity).sum()
    margin, prices = raise_prices(chain.costs, threshold_ms, arcs, prices, capacity, rounds)
    return Bound(threshold_ms, margin, prices, False)


def indexed_bound(
    chain: Chain, threshold_ms: float, arcs: Arcs, runs: Runs, prices: FloatArray, rounds: int
) -> Bound:
    """Return the best margin found from some prices on, with replica-indexed prices."""
    capacity = capacity_of(chain, threshold_ms)
    prices = prices / (prices * capacity).sum()
    margin, prices = raise_indexed_prices(
        chain.costs, threshold_ms, arcs, runs, prices, capacity, rounds
    )
    return Bound(threshold_ms, margin, prices, True)


def time_bound(
    chain: Chain, threshold_ms: float, arcs: Arcs, prices: FloatArray, target_ms: float, rounds: int
) -> Bound:
    """Return the best bound of the time of a micro-batch that is found from some prices on."""
    capacity = capacity_of(chain, threshold_ms)
    value, prices = raise_time_bound(
        chain.costs, threshold_ms, arcs, prices, capacity, target_ms, rounds
    )
    return Bound(threshold_ms, value, prices, False)


def useful_arcs(chain: Chain, arcs: Arcs, bound: Bound, cutoff_ms: float) -> Arcs:
    """Return the arcs that may be on a plan within the limits: the cheapest path through each is."""
    costs = chain.costs
    fares = fares_of(costs, bound.threshold_ms, bound.prices)
    fare = all_fares(costs, arcs, fares)
    front = cheapest_from_start(costs, arcs, fare)
    behind = cheapest_to_end(costs, arcs, fare)
    limit = limit_of(chain, bound)
    last = np.zeros(len(arcs.tail), dtype=np.int64)
    for cut in range(1, costs.num_cuts + 1):
        last[arcs.start[cut] : arcs.stop[cut]] = cut
    through = front[arcs.tail] + fare + behind[last]
    keep = through <= limit + (cutoff_ms if costs.adds_times else 1e-9)
    return keep_arcs(arcs, keep) if not keep.all() else arcs


def limit_of(chain: Chain, bound: Bound) -> float:
    """Return the most that a path may cost at some prices (step-time: besides the cut-off)."""
    capacity = capacity_of(chain, bound.threshold_ms)
    limit = float((bound.prices * capacity).sum())
    pooled = float(bound.prices[-3]) * bound.threshold_ms * chain.num_devices
    return limit - pooled / chain.costs.num_microbatches


def completions_of(
    chain: Chain, arcs: Arcs, bound: Bound, runs: Runs | None, *, is_beam: bool
) -> Completions:
    """Return the bounds of completions at a bound's prices; without beam at some around them, too."""
    costs = chain.costs
    per_replica, per_stage, per_ms, limits, least = [], [], [], [], []
    for prices in [bound.prices] if is_beam else _around(chain, bound):
        fares = fares_of(costs, bound.threshold_ms, prices)
        if runs is None:
            found = cheapest_from_start(costs, arcs, all_fares(costs, arcs, fares))[:, None]
        else:
            found = indexed_costs(costs, arcs, runs, fares)
        per_replica.append(fares.per_replica)
        per_stage.append(fares.per_stage)
        per_ms.append(fares.per_ms)
        own = Bound(bound.threshold_ms, 0.0, prices, False)
        limits.append(limit_of(chain, own))
        least.append(found)
    return Completions(
        np.array(per_replica),
        np.array(per_stage),
        np.array(per_ms),
        np.array(limits),
        np.array(least),
    )


def _around(chain: Chain, bound: Bound) -> Iterable[FloatArray]:
    """Yield a bound's prices, then single and shifted ones: each drops other labels."""
    capacity = capacity_of(chain, bound.threshold_ms)
    yield bound.prices
    kinds = len(chain.costs.counts)
    for kind in range(kinds):
        if not chain.costs.adds_times:
            alone = np.zeros_like(bound.prices)
            alone[kind] = 1.0 / capacity[kind]
            yield alone
        for factor in (0.5, 2.0):
            shifted = bound.prices.copy()
            shifted[kind] *= factor
            if not chain.costs.adds_times:
                shifted /= (shifted * capacity).sum()
            yield shifted


def search_plan(
    chain: Chain,
    arcs: Arcs,
    bound: Bound,
    runs: Runs | None,
    *,
    cutoff_ms: float,
    beam: int,
    room: int = MOST_LABELS,
    until: float = math.inf,
) -> Answer:
    """Return what the label search finds within a bound's threshold until some time (perf_counter)."""
    completions = completions_of(chain, arcs, bound, runs, is_beam=0 < beam <= FEW)
    windows = not chain.windows_are_implied
    never = np.zeros(1, dtype=np.int64)
    limits = Limits(bound.threshold_ms, cutoff_ms, chain.max_stages, beam, windows, never, False)

    def expand(limits: Limits) -> Outcome:
        return stoppable(
            lambda stop: expand_labels(
                chain.costs, limits._replace(stop=stop), arcs, completions, room
            ),
            until,
        )

    outcome = expand(limits)
    if outcome.was_stopped and chain.num_devices <= STRICT_DEVICES:
        cutoff_ms = outcome.time_ms
        strict = limits._replace(strict=True, cutoff_ms=cutoff_ms)
        second = expand(strict)
        outcome = second if len(second.plan) else outcome._replace(is_complete=second.is_complete)
    plan = outcome.plan if len(outcome.plan) else None
    return Answer(plan, outcome.time_ms, outcome.is_complete)
