"""Solver `exact`: stages of mixed types while the cluster is small (exact.py), labels beyond."""

import math
import time

from stagewright.document import InputError
from stagewright.optimizer.problem import Problem

from . import exact
from .simple import at_least, at_least_simple
from .solution import NoneFoundError, Solution

MOST_ENTRIES = 2e7
"""Of tables per threshold, in exact.py: about half a second."""
EXACT_PART = 0.75
"""Of the time, for small clusters; the rest is for labels if nothing is proven by then."""
LEAST_PART = 0.1
"""For labels there even if the exact programme's last threshold took all that was left."""
LABELS_PART = 0.75
"""Of the time, for plans with one type per stage; the rest is for stages of several types."""
CONSTRAINTS_OF_LABELS = (
    "--straight",
    "--fix",
    "--allow-recompute",
    "--budget",
    "--deadline-ms",
    "--max-period",
)


def solve(problem: Problem, time_limit_s: float | None = None) -> Solution | None:
    """Return the best plan, with its bound; None if no plan fits into memory.

    Of a cluster that is not small, None says it of plans with one type per stage.

    Raises:
        InputError: something was not measured, or the cluster is large and a constraint is for small ones.
    """
    if is_small(problem):
        return _solve_small(problem, time_limit_s)
    from .mixed.solve import may_mix, with_mixed_stages  # Its loops may have to be compiled first.

    if not may_mix(problem):
        return solve_by_labels(problem, time_limit_s)
    started = time.perf_counter()
    limit_s = None if time_limit_s is None else LABELS_PART * time_limit_s
    solution = solve_by_labels(problem, limit_s)
    if solution is None:
        return None
    left_s = None
    if time_limit_s is not None:
        left_s = max(0.0, time_limit_s - (time.perf_counter() - started))
    return with_mixed_stages(problem, solution, left_s)


def _solve_small(problem: Problem, time_limit_s: float | None) -> Solution | None:
    """Return the best plan; if time is up before it is proven, no worse than what labels find at once."""
    if time_limit_s is None:
        return exact.solve(problem)
    ends = time.perf_counter() + time_limit_s
    solution = exact.solve(problem, EXACT_PART * time_limit_s)
    is_open = solution is not None and solution.bound_ms < solution.value_ms
    if solution is None or not is_open or unknown_to_labels(problem):
        return solution
    try:
        left_s = max(LEAST_PART * time_limit_s, ends - time.perf_counter())
        other = solve_by_labels(problem, left_s)
    except NoneFoundError:
        return solution
    return solution if other is None else at_least(problem, solution, [other.stages])


def unknown_to_labels(problem: Problem) -> list[str]:
    """Return the constraints in force that plans at scale are not searched with."""
    return [name for name in problem.constraints.named if name not in CONSTRAINTS_OF_LABELS]


def solve_by_labels(problem: Problem, time_limit_s: float | None = None) -> Solution | None:
    """Return the best plan with every stage on one device type.

    Raises:
        InputError: something was not measured, or an objective or a constraint is for small clusters.
    """
    unknown = unknown_to_labels(problem)
    if unknown:
        raise InputError(
            f"{problem.inputs.cluster_path}: {', '.join(unknown)} is for smaller clusters: "
            f"{len(problem.cuts) - 1} cuts on {problem.num_devices} devices need "
            f"{table_entries(problem):.0e} table entries, expected at most {MOST_ENTRIES:.0e}; leave it "
            "out or name fewer devices"
        )
    from .labels.solve import solve as solve_labels  # Its loops may have to be compiled first.

    return at_least_simple(problem, solve_labels(problem, time_limit_s))


def is_small(problem: Problem) -> bool:
    """Return whether stages of several types are searched wherever a plan may have them."""
    return table_entries(problem) <= MOST_ENTRIES


def table_entries(problem: Problem) -> float:
    """Return how many entries of tables exact.py needs for one threshold."""
    sizes = [len(group.slots) for group in problem.groups]
    pairs = math.prod((size + 1.0) * (size + 2) / 2 for size in sizes)
    return (
        pairs
        * len(problem.cuts) ** 2
        * len(problem.places)
        * (1 + problem.constraints.allow_recompute)
        * (problem.max_stages or 1)
    )
