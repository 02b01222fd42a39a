"""Writes down the prices that prove a bound."""

import math
from collections.abc import Sequence

from stagewright.certificate import Certificate, PricedLoads
from stagewright.optimizer.problem import Problem
from stagewright.optimizer.solvers.solution import certificate_for

from .found import Found, Leaf
from .prices import MARGIN


def certificate_of(problem: Problem, types: Sequence[str], found: Found) -> Certificate | None:
    """Return the certificate of what prices prove; None if there are none, or the user fixed layers.

    Labels may have proven a better bound; for that there is no short certificate.
    """
    if not found.leaves or problem.is_fixed_by_user:
        return None
    bounds = [leaf.low_ms + leaf.bound.value for leaf in found.leaves]
    if problem.objective == "throughput":
        bounds = [leaf.bound.threshold_ms for leaf in found.leaves if leaf.bound.value > MARGIN]
    return certificate_for(
        problem,
        min([*bounds, found.bound_ms]),
        tuple(_priced(leaf, types) for leaf in found.leaves),
        is_replica_indexed=any(leaf.bound.is_indexed for leaf in found.leaves),
    )


def _priced(leaf: Leaf, types: Sequence[str]) -> PricedLoads:
    prices, threshold_ms = leaf.bound.prices.tolist(), leaf.bound.threshold_ms
    return PricedLoads(
        above_ms=leaf.low_ms,
        up_to_ms=None if math.isinf(threshold_ms) else threshold_ms,
        per_device=dict(zip(types, prices, strict=False)),
        per_stage=prices[-4],
        per_window=prices[-3],
        per_ms=prices[-2],
        per_money=prices[-1],
    )
