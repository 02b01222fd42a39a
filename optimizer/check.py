"""Checks a plan's certificate: recomputes its lower bound by shortest paths, apart from the search.

Every stage of a plan has at least the replicas that its load and its memory demand, so it costs at least
prices x these; the cheapest path through the layers minus prices x what there is bounds the sum of times
(step-time), or, if above 0, says that there is no plan within the threshold (throughput). The bound is for
plans with one device type per stage; a certificate that holds for several types, too, is recomputed with
what such stages need (solvers/mixed/needs.py, bound.py), apart from the search for prices and plans.
"""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from stagewright.certificate import Certificate, PricedLoads
from stagewright.document import InputError
from stagewright.plan import Plan

from .branching.cuts import BoolArray, Cutting
from .check_sets import least_sum_ms
from .constraints import Constraints
from .costs.cost import FORWARD_UNITS, FloatArray, IntArray, Objective, Overlap, has_flush
from .costs.tables import StageTables
from .flushless import constraints_of
from .load import Inputs
from .problem import Problem
from .solvers.fluid import Fluid, Layers
from .solvers.labels.arrays import Costs
from .solvers.labels.chain import Chain, chain_costs
from .solvers.mixed.bound import Prices, Pricing, cheapest_path
from .solvers.mixed.needs import Mixing, find_needs, mixing_of

ROUNDING = 1e-9
SLACK = 1e-12
"""Loads are within a threshold up to roundings."""

CheapestPath = Callable[[Costs, float, FloatArray, PricedLoads], float]
"""From a threshold, prices per replica of each kind of stage, and the other prices."""


def check_certificate(certificate: Certificate, inputs: Inputs, path: Path) -> float:
    """Return the lower bound that a certificate proves, in ms.

    Raises:
        InputError: it proves less than it claims, or it is for no problem that these inputs pose.
    """
    problem = problem_of(certificate, inputs, path)
    prove: Callable[[PricedLoads], float]
    if certificate.is_for_every_cut:
        fluid = Fluid(problem, Layers(problem))
        types, prove = fluid.layers.types, partial(fluid_bound_of, fluid)
    else:
        tables = StageTables(problem)
        chain = chain_costs(tables, optimistic=True)
        types = chain.types
        prove = partial(bound_of, chain, cheapest=_cheapest(certificate, tables, chain))
        if certificate.is_over_sets:
            prove = partial(_bound_over_sets, tables)
    proven = np.inf
    covered = 0.0
    for interval in sorted(certificate.intervals, key=lambda i: i.above_ms):
        if set(interval.per_device) != set(types):
            raise InputError(
                f"{path}: the certificate prices {sorted(interval.per_device)}, expected the device types "
                f"{sorted(types)}; plan again"
            )
        if interval.above_ms > covered:
            break
        covered = max(covered, np.inf if interval.up_to_ms is None else interval.up_to_ms)
        proven = min(proven, prove(interval))
    if problem.objective == "step-time" or covered == 0:
        proven = min(proven, covered)
    if proven < certificate.bound_ms * (1 - ROUNDING):
        raise InputError(
            f"{path}: the certificate claims a bound of {certificate.bound_ms} ms at micro-batch "
            f"{certificate.microbatch_size}, but its prices prove {proven} ms; do not trust it, plan again"
        )
    return float(min(proven, certificate.bound_ms))


def problem_of(certificate: Certificate, inputs: Inputs, path: Path) -> Problem:
    """Return what was planned.

    Raises:
        InputError: a choice is unknown, or the micro-batch size was not measured.
    """
    objectives: dict[str, Objective] = {
        "step-time": "step-time",
        "throughput": "throughput",
        "latency": "latency",
    }
    overlaps: dict[str, Overlap] = {"full": "full", "none": "none"}
    cuttings: dict[str, Cutting] = {"every": "every", "orders": "orders", "order": "order"}
    known = certificate.objective in objectives and certificate.overlap in overlaps
    known = known and certificate.cuts in cuttings
    if not known or certificate.microbatch_size not in inputs.model.batch_sizes:
        raise InputError(
            f"{path}: the certificate is for objective {certificate.objective!r}, overlap "
            f"{certificate.overlap!r}, cuts {certificate.cuts!r} and micro-batch "
            f"{certificate.microbatch_size}, expected one of {list(objectives)}, {list(overlaps)}, "
            f"{list(cuttings)} and {list(inputs.model.batch_sizes)}; plan again"
        )
    limits = Constraints(
        straight=certificate.straight,
        allow_recompute=certificate.allow_recompute,
        budget_per_hour=certificate.budget_per_hour,
        period_ms=certificate.period_ms,
    )
    return Problem(
        inputs=inputs,
        microbatch_size=certificate.microbatch_size,
        num_microbatches=certificate.num_microbatches,
        schedule=certificate.schedule,
        objective=objectives[certificate.objective],
        optimizer=certificate.optimizer,
        overlap=overlaps[certificate.overlap],
        count_memory=certificate.count_memory,
        count_update=certificate.count_update,
        max_stages=certificate.max_stages,
        constraints=constraints_of(certificate.schedule, limits, inputs.model),
        cutting=cuttings[certificate.cuts],
    )


def bound_of(chain: Chain, interval: PricedLoads, cheapest: CheapestPath) -> float:
    """Return the least value of plans with a largest load in an interval, as far as prices prove it."""
    costs, threshold_ms = chain.costs, interval.up_to_ms
    prices = np.array([interval.per_device[name] for name in chain.types])
    others = (interval.per_stage, interval.per_window, interval.per_ms, interval.per_money)
    if not np.isfinite([*prices, *others]).all() or min(*prices, *others) < 0:
        return 0.0
    if interval.per_stage and not chain.max_stages:
        return 0.0
    if interval.per_money and not np.isfinite(costs.budget):
        return 0.0
    if threshold_ms is None:
        return interval.above_ms if costs.is_step_time else 0.0
    window = interval.per_window * threshold_ms
    if (costs.holds_all and window) or (interval.per_ms and not chain.units_are_dealt):
        return 0.0
    if costs.is_latency and threshold_ms < chain.most_load_ms:
        return 0.0
    each = prices + interval.per_money * costs.hourly
    value = cheapest(costs, threshold_ms, each[costs.type_of], interval)
    value -= float(prices @ costs.counts) + interval.per_stage * chain.max_stages
    if interval.per_money:
        value -= interval.per_money * costs.budget
    if costs.adds_times:
        least_ms = interval.above_ms if costs.is_step_time else 0.0
        return least_ms + max(0.0, value) if interval.per_window == interval.per_ms == 0 else 0.0
    return threshold_ms if value - interval.per_ms * threshold_ms > 0 else 0.0


def fluid_bound_of(fluid: Fluid, interval: PricedLoads) -> float:
    """Return the same for plans of any cuts, whose layers each take the kind of stage that is cheapest."""
    threshold_ms, types = interval.up_to_ms, fluid.layers.types
    per_device = np.array([interval.per_device[name] for name in types])
    per_memory = np.array([interval.per_memory.get(name, 0.0) for name in types])
    most_stages = fluid.problem.max_stages or 0
    prices = np.array([*per_device, *per_memory, interval.per_stage])
    if (
        not np.isfinite(prices).all()
        or prices.min() < 0
        or (interval.per_stage and not most_stages)
    ):
        return 0.0
    if threshold_ms is None:
        return interval.above_ms if fluid.is_flush else 0.0
    kinds = fluid.kinds
    own_type, devices = kinds.device_type, kinds.replicas[:, None] * fluid.need_ms / threshold_ms
    fares = per_device[own_type, None] * devices + per_memory[own_type, None] * fluid.share
    fares += interval.per_stage * fluid.need_ms / threshold_ms + fluid.time_ms * fluid.is_flush
    impossible = (fluid.alone_ms > threshold_ms * (1 + ROUNDING)) | fluid.forbidden
    least = float(np.where(impossible, np.inf, fares).min(axis=0).sum())
    worth = float(per_device @ fluid.layers.counts + per_memory.sum())
    value = least - worth - interval.per_stage * most_stages
    if fluid.is_flush:
        return interval.above_ms + max(0.0, value)
    return threshold_ms if value > 0 else 0.0


def _cheapest(certificate: Certificate, tables: StageTables, chain: Chain) -> "CheapestPath":
    if certificate.mixes_types:
        return _mixed_path(mixing_of(tables, chain))
    return _indexed_path if certificate.is_replica_indexed else _path


def _bound_over_sets(tables: StageTables, interval: PricedLoads) -> float:
    """Return the least value of plans with a largest load in an interval, over all sets of devices."""
    is_step_time = has_flush(tables.problem.objective)
    if tables.problem.is_inference:
        return least_sum_ms(tables, tables.problem.most_load_ms)
    if interval.up_to_ms is None:
        return interval.above_ms if is_step_time else 0.0
    sum_ms = least_sum_ms(tables, interval.up_to_ms)
    if is_step_time:
        return interval.above_ms + sum_ms
    return interval.up_to_ms if sum_ms == np.inf else 0.0


def _mixed_path(mixing: Mixing) -> CheapestPath:
    """Return what finds the cheapest path through stages of one or several types."""

    def cheapest(_: Costs, threshold_ms: float, each: FloatArray, interval: PricedLoads) -> float:
        pricing = Pricing(mixing, find_needs(mixing, threshold_ms))
        prices = Prices(
            each[: mixing.chain.num_types],
            interval.per_stage,
            interval.per_window,
            interval.per_ms,
            0.0,  # The money is within the prices per replica.
        )
        return cheapest_path(pricing.fares(prices).fare)[0]

    return cheapest


def _fares(
    costs: Costs,
    prices: FloatArray,
    interval: PricedLoads,
    kind: int,
    replicas: IntArray,
    time_ms: FloatArray,
    *,
    is_first: bool,
) -> FloatArray:
    """Return the least that stages with at least some replicas (0: none is possible) cost.

    prices are per replica, of each kind of stage.
    """
    assert interval.up_to_ms is not None
    window = interval.per_window * interval.up_to_ms
    counts = np.arange(1, int(costs.most[kind]) + 1)
    fare = (prices[kind] - window / costs.num_microbatches) * counts
    if is_first:
        fare = fare - window / -(-costs.num_microbatches // counts)
    least = np.minimum.accumulate(fare[::-1])[::-1]
    per_ms = interval.per_window + interval.per_ms + float(costs.adds_times)
    found = interval.per_stage + per_ms * time_ms + least[np.maximum(replicas, 1) - 1]
    return np.where(replicas > 0, found, np.inf)


def _loads(costs: Costs, kind: int, count: int) -> tuple[FloatArray, FloatArray]:
    """Return load without window and time of all stages of some replicas, [last, first]."""
    far = int(count > costs.near[kind])
    forward, backward = costs.forward_ms[far], costs.backward_ms[far]
    compute = costs.compute_ms[kind] + (forward + backward if costs.waits else 0.0)
    level = int(count > costs.inside[kind])
    sums = [
        costs.sum_latency_ms[level, link]
        + costs.own_bytes / count * costs.sum_ms_per_byte[level, link]
        for link in range(2)
    ]
    reduce = np.where(costs.own_bytes > 0, 2 * (count - 1) * np.maximum(*sums), 0.0)
    dealt = -(-costs.num_microbatches // count)
    once = 1 if costs.is_step_time else 0
    load = (dealt - once) * compute + costs.end_ms[kind] + reduce
    if costs.waits:
        return load, compute
    messages = (dealt - once) * np.maximum(forward, backward)
    return np.maximum(load, messages), compute + forward + backward


def _units(costs: Costs, count: int, behind: IntArray) -> IntArray:
    dealt = -(-costs.num_microbatches // count)
    if costs.holds_all:
        return np.full_like(behind, dealt)
    if costs.is_latency:
        return np.full_like(behind, min(dealt, FORWARD_UNITS))
    allowed = -(-(behind + count) * dealt // costs.num_microbatches)
    return allowed if costs.is_flushless else np.minimum(dealt, allowed)


def _keeping(costs: Costs, threshold_ms: float) -> tuple[IntArray, BoolArray, FloatArray]:
    """Return numbers of replicas, which stages (C, K, last, first) keep the threshold, and times (2, ...).

    Of numbers with the same largest deal the least is enough: it sums gradients faster and holds less.
    """
    shape = costs.compute_ms.shape
    keeps = np.zeros((len(costs.replicas), *shape), dtype=bool)
    times = np.zeros((2, *shape))
    for kind in range(len(costs.type_of)):
        times[0, kind] = _loads(costs, kind, 1)[1]
        times[1, kind] = _loads(costs, kind, int(costs.near[kind]) + 1)[1]
        for row, count in enumerate(costs.replicas.tolist()):
            if count <= costs.most[kind]:
                keeps[row, kind] = _loads(costs, kind, count)[0] <= threshold_ms * (1 + SLACK)
    return costs.replicas, keeps, times


def _path(costs: Costs, threshold_ms: float, prices: FloatArray, interval: PricedLoads) -> float:
    """Return the cheapest path; a stage's memory is for the least replicas that any plan has behind it."""
    size = costs.num_cuts
    counts, keeps, times = _keeping(costs, threshold_ms)
    behind = np.full(size + 1, 2**40)
    behind[size] = 0
    fares = np.full((size + 1, size + 1), np.inf)
    for last in range(size, 0, -1):
        if behind[last] >= 2**40:
            continue
        for kind in range(len(costs.type_of)):
            units = np.array(
                [_units(costs, c, behind[last : last + 1])[0] for c in counts.tolist()]
            )
            room = costs.fits[kind, last, :last]
            good = keeps[:, kind, last, :last] & (units[:, None] <= room) & (room > 0)
            replicas = np.where(good.any(axis=0), counts[good.argmax(axis=0)], 0)
            far = (replicas > costs.near[kind]).astype(int)
            time_ms = times[far, kind, last, np.arange(last)]
            for part in (slice(0, 1), slice(1, last)):
                fare = _fares(
                    costs,
                    prices,
                    interval,
                    kind,
                    replicas[part],
                    time_ms[part],
                    is_first=part.start == 0,
                )
                fares[last, part] = np.minimum(fares[last, part], fare)
            more = np.where(replicas > 0, behind[last] + replicas, 2**40)
            behind[:last] = np.minimum(behind[:last], more)
    least = np.full(size + 1, np.inf)
    least[0] = 0.0
    for last in range(1, size + 1):
        least[last] = (least[:last] + fares[last, :last]).min()
    return float(least[size])


def _indexed_path(
    costs: Costs, threshold_ms: float, prices: FloatArray, interval: PricedLoads
) -> float:
    """Return the cheapest path with the replicas behind each cut as part of the state."""
    size, behind = costs.num_cuts, np.arange(int(costs.counts.sum()) + 1)
    counts, keeps, times = _keeping(costs, threshold_ms)
    units = np.array([_units(costs, count, behind) for count in counts.tolist()])
    chosen: dict[tuple[int, bytes], IntArray] = {}
    least = np.full((size + 1, len(behind)), np.inf)
    least[0] = 0.0
    for last, kind, first in itertools.product(
        range(1, size + 1), range(len(costs.type_of)), range(size)
    ):
        room = int(costs.fits[kind, last, first])
        good = keeps[:, kind, last, first]
        if first >= last or room < 1 or not good.any():
            continue
        key = (room, good.tobytes())
        if key not in chosen:
            both = good[:, None] & (units <= room)
            chosen[key] = np.where(both.any(axis=0), counts[both.argmax(axis=0)], 0)
        replicas = chosen[key]
        far = (replicas > costs.near[kind]).astype(int)
        fare = _fares(
            costs,
            prices,
            interval,
            kind,
            replicas,
            times[far, kind, last, first],
            is_first=first == 0,
        )
        after = np.where(replicas > 0, behind + replicas, 0)
        inside = after < len(behind)
        value = np.where(inside, fare + least[first, np.minimum(after, behind[-1])], np.inf)
        least[last] = np.minimum(least[last], value)
    return float(least[size, 0])


def check_plan(plan: Plan, inputs: Inputs, path: Path) -> list[float]:
    """Return what each certificate of a plan proves.

    Raises:
        InputError: one proves less than it claims, or the plan claims a bound above its value.
    """
    if plan.proof.lower_bound > plan.proof.value * (1 + ROUNDING):
        raise InputError(
            f"{path}: the plan's value is {plan.proof.value} ms, below its lower bound of "
            f"{plan.proof.lower_bound} ms; do not trust it, plan again"
        )
    return [check_certificate(certificate, inputs, path) for certificate in plan.proof.certificates]
