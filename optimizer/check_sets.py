"""Recomputes the least sum of times of plans under a threshold on the load, over all sets of devices.

For certificates of the small exact solver (solvers/exact.py), whose stages may have devices of any types: no
prices, but the same dynamic programme over (cut, devices behind, place of the stage before), written apart
from the search, which needs it at many more thresholds.
"""

import itertools

import numpy as np

from .costs.cost import FloatArray
from .costs.tables import Devices, StageTables

Sums = dict[tuple[Devices, int, int], FloatArray]
"""(n + 1,): least sum of times from each cut on; by devices used, stages, place of the stage before."""


def least_sum_ms(tables: StageTables, threshold_ms: float) -> float:
    """Return the least sum of times of plans whose every load is within a threshold; infinite: none."""
    problem, size = tables.problem, tables.size
    ranges = [range(len(group.slots) + 1) for group in problem.groups]
    allowed = [devices for devices in itertools.product(*ranges) if problem.may_use(devices)]
    places = range(len(tables.places))
    none = (0,) * len(ranges)
    behind_all = np.full(size + 1, np.inf)
    behind_all[size] = 0.0
    sums: Sums = {(none, 0, place): behind_all for place in places}
    counts = range(1, (problem.max_stages or 1) + 1)
    for used in sorted(allowed, key=sum):
        for stages, place in itertools.product(counts, places):
            if sum(used):
                least = _stages_from(tables, threshold_ms, sums, used, stages, place)
                if least is not None:
                    sums[used, stages, place] = least
    return min((float(own[0]) for (_, _, place), own in sums.items() if place == 0), default=np.inf)


def _stages_from(
    tables: StageTables, threshold_ms: float, sums: Sums, used: Devices, stages: int, place: int
) -> FloatArray | None:
    """Return the least sums of plans on exactly some devices, in so many stages where their number counts."""
    best: FloatArray | None = None
    for devices, recompute in tables.stage_kinds:
        left = tuple(a - b for a, b in zip(used, devices, strict=True))
        counted = stages - 1 if tables.problem.max_stages or not any(left) else stages
        behind = sums.get((left, counted, tables.place_of(devices)))
        if min(left) < 0 or behind is None:
            continue
        table = tables.table(devices, place, recompute)
        keeps = tables.allowed_stages(frozenset(tables.types_of(devices)))
        keeps = keeps & tables.fits(devices, place, sum(used), recompute)
        keeps = keeps & np.triu(np.ones_like(keeps), k=1) & (table.load_ms <= threshold_ms)
        slope, intercept = tables.window(devices, place, sum(used), recompute)
        reached = np.where(behind < np.inf, behind, 0.0)
        keeps = keeps & ((slope * reached + intercept).max(axis=0) <= threshold_ms)
        total = np.where(keeps, table.latency_ms + table.incoming_ms + behind, np.inf).min(axis=1)
        best = total if best is None else np.minimum(best, total)
    return best
