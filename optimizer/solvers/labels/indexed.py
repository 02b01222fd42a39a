"""Replica-indexed prices: the cheapest path with the replicas behind every cut as part of the state.

Where memory is tight, a stage's least replicas depend on how many are behind it. Keeping that number s while
the devices are priced makes the bound see it: G[j, s] = min over arcs (i, j) of price r(s) + G[i, s + r(s)],
r(s) the least replicas whose units in flight fit with s behind. r(s) rises with s, so it is kept as runs.
"""

from typing import NamedTuple

import numpy as np

from stagewright.optimizer.costs.cost import FloatArray, IntArray

from .arcs import Arcs, next_step
from .chain import Costs
from .compiled import compiled, compiled_inside
from .prices import FAR, MARGIN, Fares, arc_fare, fares_of, make_worth_one, worth
from .stage import units_held


class Runs(NamedTuple):
    """r(s) of every arc: with s from begin[k] up to, not including, end[k] behind, replicas[k] fit."""

    first: IntArray
    """(A,): arc a has the runs first[a] up to, not including, stop[a]; arcs alike share theirs."""
    stop: IntArray
    begin: IntArray
    end: IntArray
    replicas: IntArray
    most_behind: IntArray
    """(L + 1,): with more replicas behind the cut too few are left for the layers before it."""


@compiled_inside
def last_that_fits(costs: Costs, replicas: int, fits: int, behind: int, most: int) -> int:
    """Return the most replicas behind with which the units still fit; they do with `behind`."""
    low, high = behind, most
    while low < high:
        middle = (low + high + 1) // 2
        if units_held(costs, replicas, middle) <= fits:
            low = middle
        else:
            high = middle - 1
    return low


def find_runs(costs: Costs, arcs: Arcs) -> Runs:
    """Return r(s) of every arc."""
    keys = (arcs.fits * (len(costs.replicas) + 1) + arcs.step) * len(costs.type_of) + arcs.kind
    return runs_in_order(costs, arcs, keys, np.argsort(keys, kind="stable"))


@compiled
def runs_in_order(costs: Costs, arcs: Arcs, keys: IntArray, order: IntArray) -> Runs:
    """Return r(s) of every arc, from the order of their keys; those of equal keys are alike."""
    number, devices = len(arcs.tail), costs.counts.sum()
    first, stop = np.empty(number, np.int64), np.empty(number, np.int64)
    room, used, before = 1024, 0, -1
    begin, end = np.empty(room, np.int64), np.empty(room, np.int64)
    replicas = np.empty(room, np.int64)
    for arc in order:
        if before >= 0 and keys[arc] == keys[before]:
            first[arc], stop[arc] = first[before], stop[before]
            continue
        before, first[arc] = arc, used
        most = costs.most[arcs.kind[arc]]
        step, behind = arcs.step[arc], 0
        while behind <= devices:
            step = next_step(costs, step, arcs.fits[arc], behind, most)
            if step < 0:
                break
            if used == room:
                begin, end = np.append(begin, begin), np.append(end, end)
                replicas = np.append(replicas, replicas)
                room *= 2
            count = costs.replicas[step]
            begin[used], replicas[used] = behind, count
            behind = 1 + last_that_fits(costs, count, arcs.fits[arc], behind, devices)
            end[used] = behind
            used += 1
        stop[arc] = used
    front = np.full(costs.num_cuts + 1, 2**40, np.int64)
    front[0] = 0
    for last in range(1, costs.num_cuts + 1):
        for arc in range(arcs.start[last], arcs.stop[last]):
            front[last] = min(front[last], front[arcs.tail[arc]] + arcs.replicas[arc])
    return Runs(
        first, stop, begin[:used].copy(), end[:used].copy(), replicas[:used].copy(), devices - front
    )


@compiled_inside
def fixed_fare(costs: Costs, arcs: Arcs, arc: int, fares: Fares) -> tuple[float, float]:
    """Return (fare that does not depend on the replicas behind, fare per replica) of an arc."""
    each = fares.per_replica[costs.type_of[arcs.kind[arc]]]
    if each < 0 or (arcs.tail[arc] == 0 and fares.first_window > 0):
        fare, _ = arc_fare(costs, arcs, arc, fares)
        return fare, 0.0
    return fares.per_stage + fares.per_ms * arcs.time_ms[arc], each


@compiled
def indexed_costs(costs: Costs, arcs: Arcs, runs: Runs, fares: Fares) -> FloatArray:
    """Return G (L + 1, devices + 1): the cheapest stages of the layers before a cut, with s behind it."""
    devices = costs.counts.sum()
    least = np.full((costs.num_cuts + 1, devices + 1), FAR)
    least[0] = 0.0
    for last in range(1, costs.num_cuts + 1):
        row = least[last]
        lowest, highest = arcs.least_behind[last], min(runs.most_behind[last], devices)
        for arc in range(arcs.start[last], arcs.stop[last]):
            fixed, each = fixed_fare(costs, arcs, arc, fares)
            before = least[arcs.tail[arc]]
            for run in range(runs.first[arc], runs.stop[arc]):
                count = runs.replicas[run]
                low, high = (
                    max(runs.begin[run], lowest),
                    min(runs.end[run] - 1, highest, devices - count),
                )
                fare = fixed + each * count
                for behind in range(low, high + 1):
                    row[behind] = min(row[behind], fare + before[behind + count])
    return least


@compiled_inside
def indexed_usage(
    costs: Costs, threshold_ms: float, arcs: Arcs, runs: Runs, fares: Fares, least: FloatArray
) -> FloatArray:
    """Return what the cheapest path uses of each resource."""
    kinds, devices = len(costs.counts), costs.counts.sum()
    use = np.zeros(kinds + 4)
    last, behind, first_ms = costs.num_cuts, 0, 0.0
    while last > 0:
        best, best_arc, best_count = FAR, -1, 0
        for arc in range(arcs.start[last], arcs.stop[last]):
            fixed, each = fixed_fare(costs, arcs, arc, fares)
            for run in range(runs.first[arc], runs.stop[arc]):
                count = runs.replicas[run]
                if runs.begin[run] <= behind < runs.end[run] and behind + count <= devices:
                    value = fixed + each * count + least[arcs.tail[arc], behind + count]
                    if value < best:
                        best, best_arc, best_count = value, arc, count
        if best_arc < 0:
            break
        device_type = costs.type_of[arcs.kind[best_arc]]
        use[device_type] += best_count
        use[kinds + 3] += best_count * costs.hourly[device_type]
        use[kinds] += 1
        use[kinds + 2] += arcs.time_ms[best_arc]
        behind += best_count
        last = arcs.tail[best_arc]
        dealt = (costs.num_microbatches + best_count - 1) // best_count
        first_ms = threshold_ms / dealt
    unused = threshold_ms * (devices - behind) / costs.num_microbatches
    use[kinds + 1] = use[kinds + 2] + unused - first_ms
    return use


@compiled
def raise_indexed_prices(
    costs: Costs,
    threshold_ms: float,
    arcs: Arcs,
    runs: Runs,
    prices: FloatArray,
    capacity: FloatArray,
    rounds: int,
) -> tuple[float, FloatArray]:
    """Return (margin, prices) as prices.raise_prices does, with replica-indexed prices."""
    best, best_prices = -FAR, prices.copy()
    prices = prices.copy()
    for turn in range(rounds):
        fares = fares_of(costs, threshold_ms, prices)
        least = indexed_costs(costs, arcs, runs, fares)
        cheapest = least[costs.num_cuts, 0]
        if cheapest >= FAR:
            return FAR, prices
        constant = prices[-3] * threshold_ms * costs.counts.sum() / costs.num_microbatches
        margin = cheapest + constant - worth(prices, capacity)
        if margin > best:
            best, best_prices = margin, prices.copy()
        if margin > MARGIN:
            break
        use = indexed_usage(costs, threshold_ms, arcs, runs, fares, least)
        step = 0.5 / (turn + 1.0)
        for resource in range(len(prices)):
            if capacity[resource] > 0:
                excess = min(use[resource] / capacity[resource] - 1.0, 4.0)
                least_price = 1e-6 / capacity[resource]
                prices[resource] = max(least_price, prices[resource] * np.exp(step * excess))
        make_worth_one(prices, capacity)
    return best, best_prices
