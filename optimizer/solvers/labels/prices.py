"""Lower bounds by pricing devices: the cheapest path through the arcs, and the prices that make it dearest.

Resources: the K device types, then stages (if limited), then two that stand for the window of the first stage
under the objective throughput, then the money of a budget (a sum over replicas, as devices are). With U
replicas, n micro-batches dealt to the first stage's busiest replica, t + behind <= T u / n and u / n <=
min(1, U / M + 1 / n) give

    sum of times + T (D - U) / M - T / n <= T D / M      (D: all devices)
    sum of times                         <= T

A plan within the threshold uses at most the capacity of each. So, for any prices >= 0, if the cheapest path
costs more than prices x capacities, there is no such plan (throughput); and the cheapest path with its own
time added, minus prices x capacities, bounds the sum of times (step-time): Lagrangian relaxation of the
resource-constrained shortest path [Handler and Zang, Networks 1980].
"""

import numpy as np

from stagewright.optimizer.costs.cost import FloatArray

from .arrays import Arcs, Costs, Fares
from .kernels.library import call, call_for_ms

FAR = 1e300
MARGIN = 1e-9
"""Relative; a bound must be exceeded by this much, so that roundings prove nothing."""


def fares_of(costs: Costs, threshold_ms: float, prices: FloatArray) -> Fares:
    """Return what arcs cost at the prices of the resources."""
    kinds = len(costs.counts)
    fares = np.empty(kinds + 3)
    call("fares_at", costs, threshold_ms, prices, fares)
    return Fares(fares[:kinds], *fares[kinds:].tolist())


def all_fares(costs: Costs, arcs: Arcs, fares: Fares) -> FloatArray:
    """Return every arc's fare."""
    fare = np.empty(len(arcs.tail))
    call("arc_fares", costs, arcs, fares, fare)
    return fare


def cheapest_from_start(costs: Costs, arcs: Arcs, fare: FloatArray) -> FloatArray:
    """Return the cheapest path from the first layer to every cut."""
    least = np.empty(costs.num_cuts + 1)
    call("paths_from_start", costs, arcs, fare, least)
    return least


def cheapest_to_end(costs: Costs, arcs: Arcs, fare: FloatArray) -> FloatArray:
    """Return the cheapest path from every cut to the last layer."""
    least = np.empty(costs.num_cuts + 1)
    call("paths_to_end", costs, arcs, fare, least)
    return least


def raise_prices(
    costs: Costs,
    threshold_ms: float,
    arcs: Arcs,
    prices: FloatArray,
    capacity: FloatArray,
    rounds: int,
) -> tuple[float, FloatArray]:
    """Return (margin, prices): throughput; a margin above MARGIN proves that no plan is within the threshold.

    Multiplicative sub-gradient steps on prices x capacities, which sum to 1; the margin is the cheapest path
    minus that 1. Resources without limit have capacity 0 and stay free.
    """
    best = prices.copy()
    margin = call_for_ms("margin_by_prices", costs, threshold_ms, arcs, best, capacity, rounds)
    return margin, best


def raise_time_bound(
    costs: Costs,
    threshold_ms: float,
    arcs: Arcs,
    prices: FloatArray,
    capacity: FloatArray,
    target_ms: float,
    rounds: int,
) -> tuple[float, FloatArray]:
    """Return (bound, prices): step-time; no plan within the threshold has a smaller sum of times.

    Sub-gradient steps in prices x capacities, their length by Polyak's rule for a bound of target_ms; stops
    once the bound is above it.
    """
    best = prices.copy()
    bound = call_for_ms(
        "time_bound_by_prices", costs, threshold_ms, arcs, best, capacity, target_ms, rounds
    )
    return bound, best
