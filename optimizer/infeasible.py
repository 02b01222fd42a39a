"""Says why nothing fits into memory: where, by how much, and what to do."""

from dataclasses import replace

import numpy as np

from stagewright.document import InputError

from .assemble import Prediction, draft, predict
from .costs.cost import versions_held
from .costs.tables import StageTables
from .problem import Problem
from .solvers import choose
from .solvers.solution import Solution

LIMIT_S = 10.0
"""For the search of a plan that would be good without memory."""


def explain(problem: Problem, given: Prediction | None = None) -> InputError:
    """Return the error for a problem without a plan that fits, or for a given plan that does not.

    It names a layer that fits on no device by itself if there is one, else the stage that is most over the
    limit in the plan that would be best without one.
    """
    alone = None if given is not None else _too_large_alone(problem)
    if alone is not None:
        return alone
    if given is None:
        unlimited = choose.solve(replace(problem, count_memory=False), LIMIT_S)
        if unlimited is None:
            return _forbidden(replace(problem, count_memory=False))
        given = predict(draft(StageTables(problem), unlimited.stages), problem)
        types = {group.device_type for group in problem.groups}
        is_whole = len(types) == 1 or choose.is_small(problem)
        searched = "no plan" if is_whole else "no plan with stages of one device type each"
        subject = f"{searched} fits into memory; the one that would be fastest needs"
    else:
        subject = "the given plan does not fit into memory; it needs"
    worst = max(given.score.overflows, key=lambda o: o.peak_bytes - o.limit_bytes)
    layers = given.plan.stages[worst.stage].layers
    return InputError(
        f"{problem.inputs.cluster_path}: {subject} {_mib(worst.peak_bytes)} for layers {layers[0]!r} to "
        f"{layers[-1]!r} on device type {worst.replica.device_type!r}, "
        f"{_mib(worst.peak_bytes - worst.limit_bytes)} more than its memory_bytes "
        f"({_mib(worst.limit_bytes)}), at micro-batch {problem.microbatch_size}; {_ADVICE}"
    )


_ADVICE = (
    "use smaller micro-batches, more devices, devices with more memory, or a leaner optimizer "
    "(--optimizer), or plan with --ignore-memory"
)


def _forbidden(problem: Problem) -> InputError:
    """Return the error for a problem whose constraints leave no plan, even if memory is ignored."""
    limits = problem.constraints
    relaxed = {
        f"--budget {limits.budget_per_hour}": replace(limits, budget_per_hour=None),
        f"--deadline-ms {limits.deadline_ms}": replace(limits, deadline_ms=None),
        f"--max-period {limits.period_ms}": replace(limits, period_ms=None),
        "--straight": replace(limits, straight=False),
        "--fix": replace(limits, fixed=None),
    }
    obeyed = [name for name in limits.named if name != "--allow-recompute"]
    named = " with ".join([*obeyed, *(["--max-stages"] if problem.max_stages else [])])
    for option, without in relaxed.items():
        if without == limits:
            continue
        found = choose.solve(replace(problem, constraints=without), LIMIT_S)
        if found is not None:
            return InputError(
                f"{problem.inputs.cluster_path}: no plan obeys {named}; without {option} the best plan has "
                f"{_reached(replace(problem, constraints=without), found)}; relax it"
            )
    return InputError(f"{problem.inputs.cluster_path}: no plan obeys {named}; relax one of them")


def _reached(problem: Problem, found: Solution) -> str:
    """Return what a plan would need, in the words of the constraints that may forbid it."""
    tables = StageTables(problem)
    scored = predict(draft(tables, found.stages), problem).score
    parts = [f"a predicted time of {found.value_ms:.6g} ms"]
    if problem.is_inference:
        parts.append(f"a period of {scored.load_ms / problem.num_microbatches:.6g} ms")
    if problem.objective == "cost" or problem.constraints.budget_per_hour is not None:
        devices = tuple(map(sum, zip(*(choice.devices for choice in found.stages), strict=True)))
        parts.append(f"a price of {problem.price_per_hour(devices):.6g} per hour")
    return " and ".join(parts)


def _too_large_alone(problem: Problem) -> InputError | None:
    """Return the error for the first layer that fits on no device type as a stage of its own."""
    tables = StageTables(replace(problem, cutting="order"))
    if tables.size < len(problem.chain):
        return None  # Of a thinned chain only pieces are known.
    units = np.array(1)
    versions = versions_held(problem.schedule, units, np.array(problem.num_microbatches))
    for position, layer in enumerate(problem.chain):
        over = {
            kind: float(
                tables.memory(kind, units.astype(float), versions=versions)[position, position + 1]
            )
            - problem.memory_limit(kind)
            for kind in problem.inputs.graphs
        }
        closest = min(over, key=lambda kind: over[kind])
        if over[closest] > 0:
            limit = problem.memory_limit(closest)
            return InputError(
                f"{problem.inputs.cluster_path}: layer {layer.name!r} alone needs "
                f"{_mib(over[closest] + limit)} on device type {closest!r}, {_mib(over[closest])} more than "
                f"its memory_bytes ({_mib(limit)}), and fits on no other, at micro-batch "
                f"{problem.microbatch_size}; {_ADVICE}"
            )
    return None


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.2f} MiB" if num_bytes >= 1000 else f"{num_bytes:.0f} bytes"
