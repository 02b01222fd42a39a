"""Solver `labels`: bounds by prices, plans by labels; every stage on devices of one type.

Assumptions: those of solvers/exact.py, and one device type per stage. Where servers make a difference, the
bound takes every message and gradient sum over the best link that its stage can have, and plans are placed
stage by stage, so some gap stays.

Sources: the threshold of Alpa [Zheng et al., OSDI 2022, equation 3]; Lagrangian bounds [Handler and Zang,
Networks 1980]; the replicas behind a cut decide memory [Narayanan et al., PipeDream, SOSP 2019, section 3.2].
"""

import math
import time

from stagewright.optimizer.costs.choices import value_of
from stagewright.optimizer.costs.cost import IntArray
from stagewright.optimizer.costs.tables import StageTables
from stagewright.optimizer.problem import Problem, StageChoice
from stagewright.optimizer.solvers.solution import NoneFoundError, Solution, space_of

from .certify import certificate_of
from .chain import Chain, chain_costs, hourly_prices
from .found import Found
from .latency import LatencySearch
from .money import MoneySearch
from .placement import placements
from .step_time import StepTimeSearch
from .throughput import ThroughputSearch


def solve(problem: Problem, time_limit_s: float | None = None) -> Solution | None:
    """Return the best plan found, proven optimal unless time was up; None if it is proven that none fits.

    Raises:
        InputError: something that the cost depends on was not measured.
        NoneFoundError: time was up before a plan was found.
    """
    deadline = math.inf if time_limit_s is None else time.perf_counter() + time_limit_s
    tables = StageTables(problem)
    bounds = chain_costs(tables, optimistic=True)
    plans = bounds if bounds.is_exact else chain_costs(tables, optimistic=False)

    def evaluate(rows: IntArray) -> tuple[float, tuple[StageChoice, ...]] | None:
        scored = [(value_of(tables, c), c) for c in placements(rows, plans, problem.groups)]
        fitting = [(value_ms, choices) for value_ms, choices in scored if value_ms is not None]
        return min(fitting, key=lambda scored: scored[0], default=None)

    found = Found(evaluate, deadline)
    if problem.objective == "cost":
        money = cheapest(problem, bounds, plans, found)
        if money is not None or found.is_infeasible:
            return money
        raise NoneFoundError(problem, time_limit_s)
    search(bounds, plans, found)
    if not found.stages:
        if found.is_infeasible:
            return None
        raise NoneFoundError(problem, time_limit_s)
    return Solution(
        solver="exact (labels)",
        stages=found.stages,
        value_ms=found.value_ms,
        bound_ms=min(found.bound_ms, found.value_ms),
        space=space_of(problem, one_type_per_stage=True),
        evaluated=found.thresholds,
        mixes_types=False,
        certificate=certificate_of(problem, bounds.types, found),
    )


def cheapest(problem: Problem, bounds: Chain, plans: Chain, found: Found) -> Solution | None:
    """Return the cheapest plan found; None if there is none, and `found` says whether that is proven."""
    hourly = hourly_prices(problem, bounds.types)
    money = MoneySearch(problem, (bounds, plans), hourly, found.evaluate)
    try:
        money.run(found.deadline)
    except KeyboardInterrupt:
        if not money.stages:
            raise
    if not money.stages:
        found.is_infeasible = money.is_exhausted
        return None
    price = money.value / money.time_ms if money.time_ms else 0.0
    return Solution(
        solver="exact (labels)",
        stages=money.stages,
        value_ms=money.time_ms,
        bound_ms=money.bound / price if price else 0.0,
        space=space_of(problem, one_type_per_stage=True),
        evaluated=money.thresholds,
        mixes_types=False,
    )


def search(bounds: Chain, plans: Chain, found: Found) -> None:
    """Search until the plan is proven, time is up or the user interrupts; the result is in `found`."""
    kind: type[StepTimeSearch | ThroughputSearch] = ThroughputSearch
    if plans.costs.adds_times:
        kind = LatencySearch if plans.costs.is_latency else StepTimeSearch
    try:
        kind(bounds, plans, found).run()
    except KeyboardInterrupt:
        if not found.stages:
            raise
