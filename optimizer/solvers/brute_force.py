"""Solver `brute-force`: scores every plan of the exact solver's space, one by one: the tests' oracle."""

from collections.abc import Iterator

from stagewright.document import InputError
from stagewright.optimizer.assemble import draft
from stagewright.optimizer.costs.evaluate import score
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
    best_ms = float("inf")
    number = 0
    for choices in every_plan(tables, 0, free):
        number += 1
        if number > MOST_PLANS:
            raise InputError(
                f"{problem.inputs.cluster_path}: there are more than {MOST_PLANS} plans, too many for "
                "brute-force; use --solver exact"
            )
        found = score(draft(tables, choices), problem)
        if not found.overflows and found.value_ms < best_ms:
            best, best_ms = choices, found.value_ms
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


def every_plan(
    tables: StageTables, first: int, free: Devices, num_stages: int = 0
) -> Iterator[tuple[StageChoice, ...]]:
    """Yield every sequence of stages from a layer on with some free devices, after num_stages stages."""
    if first == tables.size:
        yield ()
        return
    if num_stages == tables.problem.max_stages:
        return
    for devices in tables.device_sets:
        left = tuple(f - d for f, d in zip(free, devices, strict=True))
        if min(left) < 0:
            continue
        for last in range(first + 1, tables.size + 1):
            for tail in every_plan(tables, last, left, num_stages + 1):
                yield (StageChoice(first, last, devices), *tail)
