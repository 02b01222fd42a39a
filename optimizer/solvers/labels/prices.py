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

from typing import NamedTuple

import numpy as np

from stagewright.optimizer.costs.cost import FloatArray, IntArray

from .arcs import Arcs
from .chain import Costs
from .compiled import compiled, compiled_inside

FAR = 1e300
MARGIN = 1e-9
"""Relative; a bound must be exceeded by this much, so that roundings prove nothing."""


class Fares(NamedTuple):
    """Prices put together: what an arc costs."""

    per_replica: FloatArray
    """(K,) by device type; negative if further replicas widen the window by more than they cost."""
    per_stage: float
    per_ms: float
    first_window: float
    """Price of the window times the threshold: the first stage's bonus is this over n."""


@compiled_inside
def worth(prices: FloatArray, amounts: FloatArray) -> float:
    """Return what some amounts of the resources cost."""
    total = 0.0
    for resource in range(len(prices)):
        total += prices[resource] * amounts[resource]
    return total


@compiled_inside
def make_worth_one(prices: FloatArray, capacity: FloatArray) -> None:
    """Scale prices so that all there is of the resources is worth 1."""
    total = worth(prices, capacity)
    for resource in range(len(prices)):
        prices[resource] /= total


@compiled
def fares_of(costs: Costs, threshold_ms: float, prices: FloatArray) -> Fares:
    """Return what arcs cost at the prices of the resources."""
    kinds = len(costs.counts)
    window = prices[kinds + 1]
    per_replica = prices[:kinds] - window * threshold_ms / costs.num_microbatches
    per_replica += prices[kinds + 3] * costs.hourly
    own = 1.0 if costs.is_step_time else 0.0
    per_ms = own + window + prices[kinds + 2]
    return Fares(per_replica, prices[kinds], per_ms, window * threshold_ms)


@compiled_inside
def arc_fare(costs: Costs, arcs: Arcs, arc: int, fares: Fares) -> tuple[float, int]:
    """Return the least that an arc costs, and with how many replicas."""
    kind, replicas = arcs.kind[arc], arcs.replicas[arc]
    each = fares.per_replica[costs.type_of[kind]]
    fare = fares.per_stage + fares.per_ms * arcs.time_ms[arc]
    most = costs.most[kind]
    if arcs.tail[arc] == 0 and fares.first_window > 0:
        best, chosen = FAR, replicas
        for count in range(replicas, most + 1):
            dealt = (costs.num_microbatches + count - 1) // count
            value = each * count - fares.first_window / dealt
            if value < best:
                best, chosen = value, count
        return fare + best, chosen
    if each < 0:
        replicas = most
    return fare + each * replicas, replicas


@compiled
def all_fares(costs: Costs, arcs: Arcs, fares: Fares) -> tuple[FloatArray, IntArray]:
    """Return every arc's fare and replicas."""
    number = len(arcs.tail)
    fare, replicas = np.empty(number), np.empty(number, np.int64)
    for arc in range(number):
        fare[arc], replicas[arc] = arc_fare(costs, arcs, arc, fares)
    return fare, replicas


@compiled
def cheapest_from_start(costs: Costs, arcs: Arcs, fare: FloatArray) -> tuple[FloatArray, IntArray]:
    """Return the cheapest path from the first layer to every cut, and the arcs that end them."""
    size = costs.num_cuts
    least, chosen = np.full(size + 1, FAR), np.full(size + 1, -1, np.int64)
    least[0] = 0.0
    for last in range(1, size + 1):
        for arc in range(arcs.start[last], arcs.stop[last]):
            value = fare[arc] + least[arcs.tail[arc]]
            if value < least[last]:
                least[last], chosen[last] = value, arc
    return least, chosen


@compiled
def cheapest_to_end(costs: Costs, arcs: Arcs, fare: FloatArray) -> FloatArray:
    """Return the cheapest path from every cut to the last layer."""
    size = costs.num_cuts
    least = np.full(size + 1, FAR)
    least[size] = 0.0
    for last in range(size, 0, -1):
        if least[last] >= FAR:
            continue
        for arc in range(arcs.start[last], arcs.stop[last]):
            value = fare[arc] + least[last]
            if value < least[arcs.tail[arc]]:
                least[arcs.tail[arc]] = value
    return least


@compiled_inside
def path_usage(
    costs: Costs, threshold_ms: float, arcs: Arcs, chosen: IntArray, replicas: IntArray
) -> tuple[FloatArray, float]:
    """Return what the cheapest path uses of each resource, and the time of a micro-batch on it."""
    kinds = len(costs.counts)
    use = np.zeros(kinds + 4)
    total, used, last = 0.0, 0, costs.num_cuts
    share = threshold_ms / costs.num_microbatches
    first_ms = 0.0
    while last > 0:
        arc = chosen[last]
        count = replicas[arc]
        device_type = costs.type_of[arcs.kind[arc]]
        use[device_type] += count
        use[kinds + 3] += count * costs.hourly[device_type]
        use[kinds] += 1
        total += arcs.time_ms[arc]
        used += count
        last = arcs.tail[arc]
        if last == 0:
            first_ms = threshold_ms / ((costs.num_microbatches + count - 1) // count)
    use[kinds + 1] = total + share * (costs.counts.sum() - used) - first_ms
    use[kinds + 2] = total
    return use, total


@compiled
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
    best, best_prices = -FAR, prices.copy()
    prices = prices.copy()
    for turn in range(rounds):
        fares = fares_of(costs, threshold_ms, prices)
        fare, replicas = all_fares(costs, arcs, fares)
        least, chosen = cheapest_from_start(costs, arcs, fare)
        if least[costs.num_cuts] >= FAR:
            return FAR, prices
        constant = prices[-3] * threshold_ms * costs.counts.sum() / costs.num_microbatches
        margin = least[costs.num_cuts] + constant - worth(prices, capacity)
        if margin > best:
            best, best_prices = margin, prices.copy()
        if margin > MARGIN:
            break
        use, _ = path_usage(costs, threshold_ms, arcs, chosen, replicas)
        step = 0.5 / (turn + 1.0)
        for resource in range(len(prices)):
            if capacity[resource] > 0:
                excess = min(use[resource] / capacity[resource] - 1.0, 4.0)
                least_price = 1e-6 / capacity[resource]
                prices[resource] = max(least_price, prices[resource] * np.exp(step * excess))
        make_worth_one(prices, capacity)
    return best, best_prices


@compiled
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
    best, best_prices = -FAR, prices.copy()
    prices = prices.copy()
    ease, since = 1.0, 0
    for _ in range(rounds):
        fares = fares_of(costs, threshold_ms, prices)
        fare, replicas = all_fares(costs, arcs, fares)
        least, chosen = cheapest_from_start(costs, arcs, fare)
        if least[costs.num_cuts] >= FAR:
            return FAR, prices
        bound = least[costs.num_cuts] - worth(prices, capacity)
        since += 1
        if bound > best * (1 + 1e-7):
            since = 0
        if bound > best:
            best, best_prices = bound, prices.copy()
        if best >= target_ms:
            break
        if since > 8:
            ease, since, prices = ease * 0.5, 0, best_prices.copy()
            if ease < 0.004:
                break
            continue
        use, _ = path_usage(costs, threshold_ms, arcs, chosen, replicas)
        norm = 0.0
        for resource in range(len(prices)):
            if capacity[resource] > 0:
                norm += (use[resource] / capacity[resource] - 1.0) ** 2
        if norm < 1e-16:
            break
        step = ease * (target_ms - bound) / norm
        for resource in range(len(prices)):
            if capacity[resource] > 0:
                gradient = use[resource] / capacity[resource] - 1.0
                raised = prices[resource] * capacity[resource] + step * gradient
                prices[resource] = max(0.0, raised) / capacity[resource]
    return best, best_prices
