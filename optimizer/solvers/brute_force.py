"""Solver `brute-force`: scores every plan of the exact solver's space, one by one: the tests' oracle."""

from collections.abc import Iterator

from stagewright.document import InputError
from stagewright.optimizer.assemble import draft
from stagewright.optimizer.costs.evaluate import Score, score
from stagewright.optimizer.costs.tables import Devices, StageTables
from stagewright.optimizer.problem import Problem, StageChoice

from .solution import Solution, space_of

MOST_PLANS = 100_000


def solve(problem: Problem) -> Solution | None:
    """Return the best of all plans that fit into memory; None if none does.

    Raises:
        InputError: there are too many plans.
    """
    tables = StageTables(problem)
    free = tuple(len(group.slots) for group in problem.groups)
    best: tuple[StageChoice, ...] | None = None
    best_value = best_ms = float("inf")
    number = 0
    for choices in every_plan(tables, 0, free):
        number += 1
        if number > MOST_PLANS:
            raise InputError(
                f"{problem.inputs.cluster_path}: there are more than {MOST_PLANS} plans, too many for "
                "brute-force; use --solver exact"
            )
        found = score(draft(tables, choices), problem)
        used = tuple(map(sum, zip(*(choice.devices for choice in choices), strict=True)))
        if found.overflows or not (problem.may_use(used) and _in_time(problem, found)):
            continue
        weight = problem.worth_of_ms([used])
        if weight * found.value_ms < best_value:
            best, best_ms, best_value = choices, found.value_ms, weight * found.value_ms
    if best is None:
        return None
    return Solution(
        solver="brute-force",
        stages=best,
        value_ms=best_ms,
        bound_ms=best_ms,
        space=space_of(problem),
        evaluated=number,
    )


def _in_time(problem: Problem, found: Score) -> bool:
    """Return whether a plan keeps the deadline of its step and the period of its busiest part."""
    deadline_ms = problem.constraints.deadline_ms
    late = deadline_ms is not None and found.value_ms > deadline_ms * (1 + 1e-9)
    return not late and found.load_ms <= problem.most_load_ms


def every_plan(
    tables: StageTables, first: int, free: Devices, num_stages: int = 0
) -> Iterator[tuple[StageChoice, ...]]:
    """Yield every sequence of stages from a cut on with some free devices, after num_stages stages."""
    if first == tables.size:
        yield ()
        return
    if num_stages == tables.problem.max_stages:
        return
    for devices, recompute in tables.stage_kinds:
        left = tuple(f - d for f, d in zip(free, devices, strict=True))
        if min(left) < 0:
            continue
        for last in range(first + 1, tables.size + 1):
            if not tables.allowed_stages(frozenset(tables.types_of(devices)))[first, last]:
                continue
            for tail in every_plan(tables, last, left, num_stages + 1):
                yield (StageChoice(first, last, devices, recompute), *tail)
