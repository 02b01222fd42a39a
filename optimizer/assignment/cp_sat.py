"""Solver `cp-sat`: deals items to devices by constraint programming, contiguously or in any way.

One boolean per item and position; in a contiguous split an item lies at a position or before it only if
everything it depends on does (prefix literals). One boolean per transfer and position is forced when the
transfer is cut there. All times are scaled to whole numbers and rounded down, so the bound holds.

It needs Google OR-tools: pip install 'stagewright[ortools]'.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from stagewright.document import InputError

from .problem import Assignment, AssignmentProblem, Part

if TYPE_CHECKING:
    from ortools.sat.python.cp_model import CpModel, CpSolver, IntVar

CONTIGUOUS = (
    "every split into contiguous parts, in every order of device kinds, idle devices allowed"
)
ANY = "every assignment of items to devices"
MOST_DIGITS = 9
"""Behind the decimal point."""
LARGEST_TOTAL = 2**50
"""The scaled times of all items together stay below this, so that sums fit into 64 bits."""


@dataclass(frozen=True)
class _Model:
    model: "CpModel"
    slowest: "IntVar"
    placed: list[list["IntVar"]]
    """[item][position]"""
    is_cpu: list["IntVar"]


def solve(
    problem: AssignmentProblem,
    *,
    contiguous: bool = True,
    time_limit_s: float | None = None,
    hint: Assignment | None = None,
) -> Assignment | None:
    """Return the best assignment found and the proven bound; None if it is proven that none fits.

    Args:
        contiguous: allow only splits in which positions follow the items' order.
        time_limit_s: stop searching then; the bound says how far the best may be from the optimum.
        hint: an assignment to start from.

    Raises:
        InputError: OR-tools is not installed, or the time is over before anything was found.
    """
    try:
        from ortools.sat.python import cp_model
    except ModuleNotFoundError as error:
        raise InputError(
            f"solver cp-sat: {error.name} is not installed; pip install 'stagewright[ortools]'"
        ) from None
    scale = _scale(problem)
    built = _build(problem, scale, contiguous)
    if hint is not None:
        _add_hint(built, hint)
    solver = cp_model.CpSolver()
    # One worker: with several the plan found depends on which of them is first.
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    # With sums of coefficients above 2**31 this presolve step of OR-tools 9.15 makes enforced constraints
    # unconditional and so cuts off solutions (google/or-tools issue 5293); a limit of 0 leaves it out.
    solver.parameters.presolve_inclusion_work_limit = 0
    if time_limit_s is not None:
        solver.parameters.max_time_in_seconds = time_limit_s
    status = solver.solve(built.model)
    if status == cp_model.INFEASIBLE:
        return None
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        raise InputError(
            f"solver cp-sat: found nothing within {time_limit_s} s; raise --time-limit or use another solver"
        )
    parts = _parts(built, solver)
    value = max((problem.load_ms(part.kind, part.items) for part in parts), default=0.0)
    return Assignment(
        solver="cp-sat",
        parts=parts,
        value_ms=value,
        bound_ms=min(value, math.ceil(solver.best_objective_bound - 1e-6) / scale),
        space=CONTIGUOUS if contiguous else ANY,
        evaluated=solver.num_branches,
    )


def _scale(problem: AssignmentProblem) -> int:
    """Return the power of ten that times are multiplied with."""
    total = max(_total_ms(problem), 1e-9)
    return int(10 ** min(MOST_DIGITS, math.floor(math.log10(LARGEST_TOTAL / total))))


def _total_ms(problem: AssignmentProblem) -> float:
    """Return what no device's load exceeds."""
    total = math.fsum(max(item.accelerator_ms, item.cpu_ms) for item in problem.items)
    return total + math.fsum(transfer.cost_ms for transfer in problem.transfers)


def _scaled(value: float, scale: int) -> int:
    """Return a time as a whole number, rounded down; its shortest decimal form is what was meant."""
    return math.floor(Fraction(repr(float(value))) * scale)


def _build(problem: AssignmentProblem, scale: int, contiguous: bool) -> _Model:
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    num_positions = problem.num_accelerators + problem.num_cpus
    placed = [
        [model.new_bool_var(f"item {item} at {position}") for position in range(num_positions)]
        for item in range(len(problem.items))
    ]
    for row in placed:
        model.add_exactly_one(row)
    is_cpu = [model.new_bool_var(f"position {p} is a CPU") for p in range(num_positions)]
    model.add(sum(is_cpu) == problem.num_cpus)
    if contiguous:
        _keep_order(model, problem, placed)
    else:
        # Positions of one kind are interchangeable then.
        for position in range(num_positions):
            model.add(is_cpu[position] == (position >= problem.num_accelerators))
    slowest = model.new_int_var(0, math.ceil(_total_ms(problem) * scale), "slowest")
    for position in range(num_positions):
        _limit_load(
            model, problem, scale, [row[position] for row in placed], is_cpu[position], slowest
        )
    model.minimize(slowest)
    return _Model(model, slowest, placed, is_cpu)


def _keep_order(model: "CpModel", problem: AssignmentProblem, placed: list[list["IntVar"]]) -> None:
    """Add, per item and position, the literal that the item lies there or before; it keeps the order."""
    prefix = []
    for item, row in enumerate(placed):
        literals = [model.new_bool_var(f"item {item} up to {p}") for p in range(len(row))]
        model.add(literals[0] == row[0])
        for position in range(1, len(row)):
            model.add(literals[position] == literals[position - 1] + row[position])
        prefix.append(literals)
    for before, after in problem.order:
        for position in range(len(placed[before])):
            model.add_implication(prefix[after][position], prefix[before][position])


def _limit_load(
    model: "CpModel",
    problem: AssignmentProblem,
    scale: int,
    here: list["IntVar"],
    is_cpu: "IntVar",
    slowest: "IntVar",
) -> None:
    """Add what one position may hold and that `slowest` is at least its load; here: [item]."""
    compute = []
    host = []
    for item, variable in zip(problem.items, here, strict=True):
        compute.append(_scaled(item.accelerator_ms, scale) * variable)
        host.append(_scaled(item.cpu_ms, scale) * variable)
        if not item.supported:
            model.add_implication(variable, is_cpu)
    paid = []
    for number, transfer in enumerate(problem.transfers):
        if transfer.cost_ms == 0 or len(transfer.items) < 2:
            continue
        cut = model.new_bool_var(f"transfer {number} is cut")
        # Around the circle of its items, some neighbour is missing if some are here and some are not.
        circle = sorted(transfer.items)
        for first, second in zip(circle, [*circle[1:], circle[0]], strict=True):
            model.add_bool_or(here[first].negated(), here[second], cut)
        paid.append(_scaled(transfer.cost_ms, scale) * cut)
    model.add(sum(compute) + sum(paid) <= slowest).only_enforce_if(is_cpu.negated())
    model.add(sum(host) <= slowest).only_enforce_if(is_cpu)
    pairs = zip(problem.items, here, strict=True)
    num_bytes = sum(item.num_bytes * variable for item, variable in pairs)
    model.add(num_bytes <= problem.accelerator_bytes).only_enforce_if(is_cpu.negated())


def _add_hint(built: _Model, hint: Assignment) -> None:
    position_of = {item: p for p, part in enumerate(hint.parts) for item in part.items}
    for item, row in enumerate(built.placed):
        for position, variable in enumerate(row):
            built.model.add_hint(variable, position_of[item] == position)


def _parts(built: _Model, solver: "CpSolver") -> tuple[Part, ...]:
    parts = []
    for position, is_cpu in enumerate(built.is_cpu):
        held = tuple(
            item for item, row in enumerate(built.placed) if solver.boolean_value(row[position])
        )
        if held:
            parts.append(
                Part(kind="cpu" if solver.boolean_value(is_cpu) else "accelerator", items=held)
            )
    return tuple(parts)
