"""Solver `ideals`: the dynamic programme over pairs of nested ideals, exact for contiguous splits.

best[c, a, I] = min over ideals J within I of max(best with one device fewer at J, load(I without J)).
It takes O(P k l) time for P nested pairs, k accelerators and l CPUs.

Source: Tarnawski et al., NeurIPS 2020, section 5.1.1.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stagewright.optimizer.ideals import ideals, members, membership, subsets_of

from .problem import Assignment, AssignmentProblem, Kind, Part

MOST_IDEALS = 5_000
SPACE = "every split into contiguous parts, in every order of device kinds, idle devices allowed"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Tables:
    """What the loads of all sets between two ideals follow from; a row per ideal."""

    member: npt.NDArray[np.bool_]
    accelerator_ms: Floats
    cpu_ms: Floats
    num_bytes: Floats
    unsupported: npt.NDArray[np.intp]
    pins: npt.NDArray[np.intp]
    """How many items of each transfer an ideal holds."""
    all_pins: npt.NDArray[np.intp]
    transfer_ms: Floats


def solve(problem: AssignmentProblem) -> Assignment | None:
    """Return the best contiguous assignment; None if no contiguous one fits.

    Raises:
        TooManyIdealsError: there are more than MOST_IDEALS ideals.
    """
    masks = ideals(len(problem.items), problem.order, MOST_IDEALS)
    tables = _tabulate(problem, masks)
    shape = (problem.num_cpus + 1, problem.num_accelerators + 1, len(masks))
    best = np.full(shape, np.inf)
    best[:, :, 0] = 0.0
    from_ideal = np.zeros(shape, np.intp)
    by_cpu = np.zeros(shape, bool)
    evaluated = 0
    for row in range(1, len(masks)):
        inner = subsets_of(row, tables.member)
        evaluated += len(inner)
        loads: dict[Kind, Floats] = {
            "accelerator": _accelerator_ms(problem, tables, row, inner),
            "cpu": tables.cpu_ms[row] - tables.cpu_ms[inner],
        }
        for cpus in range(shape[0]):
            for accelerators in range(shape[1]):
                here = (cpus, accelerators, row)
                for kind, load in loads.items():
                    less = (cpus - (kind == "cpu"), accelerators - (kind == "accelerator"))
                    if min(less) < 0:
                        continue
                    # Behind the ideal itself the device stays idle.
                    value = np.maximum(best[*less][inner], load)
                    choice = int(np.argmin(value))
                    if value[choice] < best[here]:
                        best[here] = value[choice]
                        from_ideal[here], by_cpu[here] = inner[choice], kind == "cpu"
    if not np.isfinite(best[-1, -1, -1]):
        return None
    parts = _trace_back(masks, from_ideal, by_cpu)
    value = max(problem.load_ms(part.kind, part.items) for part in parts)
    return Assignment(
        solver="ideals", parts=parts, value_ms=value, bound_ms=value, space=SPACE, evaluated=evaluated
    )  # fmt: skip


def _tabulate(problem: AssignmentProblem, masks: tuple[int, ...]) -> _Tables:
    member = membership(masks, len(problem.items))
    pins = np.zeros((len(problem.items), len(problem.transfers)), np.intp)
    for column, transfer in enumerate(problem.transfers):
        pins[sorted(transfer.items), column] = 1
    counts = member.astype(np.intp)
    return _Tables(
        member=member,
        accelerator_ms=member @ np.array([item.accelerator_ms for item in problem.items]),
        cpu_ms=member @ np.array([item.cpu_ms for item in problem.items]),
        num_bytes=member @ np.array([item.num_bytes for item in problem.items], float),
        unsupported=counts @ np.array([not item.supported for item in problem.items], np.intp),
        pins=counts @ pins,
        all_pins=pins.sum(axis=0),
        transfer_ms=np.array([transfer.cost_ms for transfer in problem.transfers], float),
    )


def _accelerator_ms(
    problem: AssignmentProblem, tables: _Tables, row: int, inner: npt.NDArray[np.intp]
) -> Floats:
    """Return the load of an accelerator with what lies between each inner ideal and the row's."""
    held = tables.pins[row] - tables.pins[inner]
    cut = (held > 0) & (held < tables.all_pins)
    load = tables.accelerator_ms[row] - tables.accelerator_ms[inner] + cut @ tables.transfer_ms
    fits = tables.num_bytes[row] - tables.num_bytes[inner] <= problem.accelerator_bytes
    supported = tables.unsupported[row] == tables.unsupported[inner]
    return np.where(fits & supported, load, np.inf)


def _trace_back(
    masks: tuple[int, ...], from_ideal: npt.NDArray[np.intp], by_cpu: npt.NDArray[np.bool_]
) -> tuple[Part, ...]:
    cpus, accelerators, row = (size - 1 for size in from_ideal.shape)
    parts = []
    while row > 0:
        here = (cpus, accelerators, row)
        inner = int(from_ideal[here])
        kind: Kind = "cpu" if by_cpu[here] else "accelerator"
        if inner != row:
            parts.append(Part(kind=kind, items=members(masks[row] & ~masks[inner])))
        cpus, accelerators = cpus - (kind == "cpu"), accelerators - (kind == "accelerator")
        row = inner
    return tuple(reversed(parts))
