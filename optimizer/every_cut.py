"""Graphs whose cuts are too many to search all: plans made better close by, and a bound for every cut."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from stagewright.certificate import Certificate
from stagewright.plan import EveryCut

from .problem import MS_PER_HOUR, Problem
from .solvers import chain_bound, constraint_bound
from .solvers.constraint_bound import ENOUGH
from .solvers.fluid import METHOD, every_cut_proof
from .solvers.solution import NoneFoundError, Solution, certificate_for

FIRST_PART = 0.6
"""Of the time, for the search over cuts spread evenly; the rest is for those close to its plan's."""
MOST_ROUNDS = 3
LEAST_S, MOST_S = 0.5, 10.0
"""For each further bound."""
FURTHER = (
    (chain_bound.METHOD, chain_bound.is_possible, chain_bound.chain_bound),
    (constraint_bound.METHOD, constraint_bound.is_possible, constraint_bound.constraint_bound),
)
"""What may be better than a fluid, and takes time."""
WORTH_A_ROUND = 1e-3
"""Another search close by if the last one made the plan better by this part."""

Solve = Callable[[Problem, float | None], Solution | None]
Found = tuple[Solution, Problem] | None


def solve_thinned(problem: Problem, time_limit_s: float | None, solve: Solve) -> Found:
    """Return the best plan over thinned cuts, then over cuts close to its own; None if none was found.

    Its bound is 0: what is known is the bound for every cut.
    """
    started = time.perf_counter()
    solution = solve(problem, None if time_limit_s is None else FIRST_PART * time_limit_s)
    if solution is None:
        return None
    best, where = solution, problem
    for _ in range(MOST_ROUNDS):
        left_s = None if time_limit_s is None else time_limit_s - (time.perf_counter() - started)
        if left_s is not None and left_s < 0:
            break
        closer = replace(problem, around=stage_of_layers(where, best))
        try:
            found = solve(closer, left_s)
        except NoneFoundError:
            break
        if found is None or found.value_ms >= best.value_ms:
            break
        gain = 1 - found.value_ms / best.value_ms
        best, where = found, closer
        if gain < WORTH_A_ROUND:
            break
    best = replace(
        best,
        bound_ms=0.0,
        space=f"{solution.space}; then cuts close to the best plan's; the bound is for every cut",
        certificate=None,
        mixed_bound_ms=None,
        mixed_certificate=None,
    )
    return best, where


def stage_of_layers(problem: Problem, solution: Solution) -> tuple[int, ...]:
    """Return the number of the stage of each layer of the chain."""
    stages = [0] * len(problem.chain)
    for number, choice in enumerate(solution.stages):
        for layer in problem.cuts.held(choice.first, choice.last):
            stages[layer] = number
    return tuple(stages)


def every_cut_of(
    problems: Sequence[Problem], solution: Solution, value: float, deadline: float
) -> tuple[float, EveryCut | None, list[Certificate]]:
    """Return a bound for every cut of the graph; what to say of it if only some were searched, and its proof.

    Args:
        problems: one per micro-batch size.
        value: of the plan under the closed formula, as reported; the bound is in its unit.
        deadline: by time.perf_counter, for the bounds that take time.
    """
    unit = 1000 / MS_PER_HOUR if problems[0].objective == "cost" else 1.0
    mixes = solution.mixes_types
    proofs = [every_cut_proof(p, value / unit, mixes_types=mixes) for p in problems]
    bounds = [bound for bound, _ in proofs]
    bound = min(value, unit * min(bounds))
    if all(problem.cuts.is_complete for problem in problems):
        return bound, None, []
    certificates = [
        certificate_for(problem, own, intervals, is_for_every_cut=True)
        for problem, (own, intervals) in zip(problems, proofs, strict=True)
        if intervals
    ]
    method = METHOD
    for name, is_possible, improve in FURTHER:
        possible = all(is_possible(problem, mixes_types=mixes) for problem in problems)
        better = _improved(improve, problems, bounds, value, deadline) if possible else bounds
        if min(better) > min(bounds):
            bounds, bound, method = better, min(value, *better), name
    return bound, EveryCut(lower_bound=bound, method=method), certificates


def _improved(
    improve: Callable[[Problem, float, float, float], float],
    problems: Sequence[Problem],
    bounds: Sequence[float],
    value: float,
    deadline: float,
) -> list[float]:
    """Return bounds made better where there is time and something to gain."""
    deadline = min(deadline, time.perf_counter() + MOST_S)
    better = list(bounds)
    for index, problem in enumerate(problems):
        seconds = (deadline - time.perf_counter()) / (len(problems) - index)
        if bounds[index] < value * (1 - ENOUGH) and seconds >= LEAST_S:
            better[index] = max(bounds[index], improve(problem, bounds[index], value, seconds))
    return better
