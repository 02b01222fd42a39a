"""Replica-indexed prices: the cheapest path with the replicas behind every cut as part of the state.

Where memory is tight, a stage's least replicas depend on how many are behind it. Keeping that number s while
the devices are priced makes the bound see it: G[j, s] = min over arcs (i, j) of price r(s) + G[i, s + r(s)],
r(s) the least replicas whose units in flight fit with s behind. r(s) rises with s, so it is kept as runs.
"""

import numpy as np

from stagewright.optimizer.costs.cost import FloatArray

from .arrays import Arcs, Costs, Fares, Runs
from .kernels.library import call, call_for_ms

FIRST_ROOM = 4096


def find_runs(costs: Costs, arcs: Arcs) -> Runs:
    """Return r(s) of every arc."""
    keys = (arcs.fits * (len(costs.replicas) + 1) + arcs.step) * len(costs.type_of) + arcs.kind
    order, number = np.argsort(keys, kind="stable"), len(arcs.tail)
    room, needed = 0, FIRST_ROOM
    while room < needed:
        room = needed
        runs = Runs(
            first=np.empty(number, np.int64),
            stop=np.empty(number, np.int64),
            begin=np.empty(room, np.int64),
            end=np.empty(room, np.int64),
            replicas=np.empty(room, np.int64),
            most_behind=np.empty(costs.num_cuts + 1, np.int64),
        )
        needed = call("runs_of", costs, arcs, keys, order, runs)
    return runs


def indexed_costs(costs: Costs, arcs: Arcs, runs: Runs, fares: Fares) -> FloatArray:
    """Return G (L + 1, devices + 1): the cheapest stages of the layers before a cut, with s behind it."""
    least = np.empty((costs.num_cuts + 1, int(costs.counts.sum()) + 1))
    call("indexed_paths", costs, arcs, runs, fares, least)
    return least


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
    best = prices.copy()
    margin = call_for_ms(
        "margin_by_indexed_prices", costs, threshold_ms, arcs, runs, best, capacity, rounds
    )
    return margin, best
