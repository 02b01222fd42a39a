"""Plans a file of another system under that system's cost model, and says what came of it as one object.

These functions are what `stagewright optimize FILE --format ...` and
`python -m stagewright.optimizer.formats` call; docs/other-planners.md lists the object's keys.
All times are predicted, by the named cost model.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from stagewright.document import InputError
from stagewright.optimizer.assignment import cp_sat, ideal_program
from stagewright.optimizer.assignment.problem import Assignment, Kind
from stagewright.optimizer.ideals import TooManyIdealsError

from .dnn_partitioning import Workload, load_workload, save_assignment
from .piper import Model, Stage, load_model, units_in_flight
from .piper_search import SPACE, Limits, Planned, plan
from .reduce import Reduction, reduce

FALLBACK_SECONDS = 60.0
"""The time limit of cp-sat where it steps in and the user gave none."""
DnnSolver = Literal["ideals", "cp-sat"]
Report = dict[str, Any]


def plan_dnn_partitioning(
    path: Path,
    *,
    solver: DnnSolver = "ideals",
    contiguous: bool = True,
    time_limit_s: float | None = None,
    num_accelerators: int | None = None,
    num_cpus: int | None = None,
    output: Path | None = None,
) -> Report:
    """Return the report of the best assignment of a dnn-partitioning file's operators to its devices.

    Args:
        path: the file.
        solver: "ideals" is exact for contiguous splits; "cp-sat" needs OR-tools and proves both kinds.
        contiguous: keep every device's forward operators contiguous; otherwise cp-sat is needed.
        time_limit_s: for cp-sat.
        num_accelerators: instead of the file's number.
        num_cpus: instead of the file's number.
        output: write the assignment there in dnn-partitioning's output format.

    Raises:
        InputError: the file or a choice is wrong.
    """
    if solver == "ideals" and not contiguous:
        raise InputError(
            "solver ideals: finds contiguous splits only; use --solver cp-sat for others"
        )
    started = time.perf_counter()
    workload = _with_devices(load_workload(path), num_accelerators, num_cpus)
    reduction = reduce(workload)
    found, notes = _assign(reduction, solver, contiguous, time_limit_s)
    report = _head(path, "dnn-partitioning", time.perf_counter() - started)
    if found is None:
        return report | {"reason": _why_no_assignment(workload, reduction), "notes": notes}
    devices = [(part.kind, reduction.operators(part.items)) for part in found.parts]
    value = max(workload.load_ms(kind, held) for kind, held in devices)
    assert math.isclose(value, found.value_ms, rel_tol=1e-9), (value, found.value_ms)
    if output is not None:
        save_assignment(output, workload, devices)
    return report | {
        "feasible": True,
        "objective_ms": value,
        "bound_ms": min(found.bound_ms, value),
        "gap": _gap(value, found.bound_ms),
        "solver": found.solver,
        "space": found.space,
        "evaluated": found.evaluated,
        "stages": _dnn_stages(workload, devices),
        "notes": notes,
    }


def plan_piper(
    path: Path,
    *,
    num_devices: int | None = None,
    memory_bytes: float | None = None,
    bandwidth_bytes_per_s: float | None = None,
    samples_per_batch: int | None = None,
    limits: Limits | None = None,
) -> Report:
    """Return the report of the best plan for a Piper file; what is given replaces the file's numbers.

    Raises:
        InputError: the file or a choice is wrong.
    """
    started = time.perf_counter()
    changes = {
        "num_devices": num_devices,
        "memory_bytes": memory_bytes,
        "bandwidth_bytes_per_s": bandwidth_bytes_per_s,
        "samples_per_batch": samples_per_batch,
    }
    model = load_model(path)
    try:
        model = replace(model, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    planned = plan(model, limits)
    report = _head(path, "piper", time.perf_counter() - started) | {
        "solver": "ideals",
        "space": SPACE,
        "num_devices": model.num_devices,
        "memory_bytes": model.memory_bytes,
        "bandwidth_bytes_per_s": model.bandwidth_bytes_per_s,
        "samples_per_batch": model.samples_per_batch,
        "notes": [],
    }
    if not planned.stages:
        return report | {"reason": _why_no_plan(model, planned)}
    value_ms = planned.seconds_per_sample * 1e3
    stages = _piper_stages(model, planned.stages)
    used = sum(stage.replicas * stage.tensor_parallel for stage in planned.stages)
    notes = []
    if used < model.num_devices:
        notes.append(
            f"{used} of {model.num_devices} devices do as well as all; the others stay idle"
        )
    return report | {
        "feasible": True,
        "objective_ms": value_ms,
        "bound_ms": value_ms,
        "gap": 0.0,
        "stages": stages,
        "notes": notes,
    }


PLANNERS: dict[str, Callable[..., Report]] = {
    "dnn-partitioning": plan_dnn_partitioning,
    "piper": plan_piper,
}
"""By the name that --format takes."""


def _head(path: Path, cost_model: str, seconds: float) -> Report:
    return {
        "file": str(path),
        "format": cost_model,
        "cost_model": cost_model,
        "objective": "throughput",
        "feasible": False,
        "reason": None,
        "objective_ms": None,
        "bound_ms": None,
        "gap": None,
        "solver": None,
        "space": None,
        "seconds": seconds,
        "stages": [],
    }


def _gap(value: float, bound: float) -> float:
    return max(0.0, (value - bound) / value) if value > 0 else 0.0


def _with_devices(
    workload: Workload, num_accelerators: int | None, num_cpus: int | None
) -> Workload:
    accelerators = workload.num_accelerators if num_accelerators is None else num_accelerators
    cpus = workload.num_cpus if num_cpus is None else num_cpus
    if min(accelerators, cpus) < 0 or accelerators + cpus == 0:
        raise InputError(
            f"there are {accelerators} accelerators and {cpus} CPUs; expected at least one device"
        )
    return replace(workload, num_accelerators=accelerators, num_cpus=cpus)


def _assign(
    reduction: Reduction, solver: DnnSolver, contiguous: bool, time_limit_s: float | None
) -> tuple[Assignment | None, list[str]]:
    if solver == "ideals":
        try:
            return ideal_program.solve(reduction.problem), []
        except TooManyIdealsError as error:
            time_limit_s = time_limit_s or FALLBACK_SECONDS
            notes = [
                f"solver ideals: {error}; solver cp-sat was used instead, for at most {time_limit_s:g} s"
            ]
    else:
        notes = []
    found = cp_sat.solve(reduction.problem, contiguous=contiguous, time_limit_s=time_limit_s)
    return found, notes


def _why_no_assignment(workload: Workload, reduction: Reduction) -> str:
    problem = reduction.problem
    for number, item in enumerate(problem.items):
        names = ", ".join(workload.operators[p].name for p in reduction.operators_of[number][:3])
        if workload.num_cpus == 0 and not item.supported:
            return f"operator {names} does not run on an accelerator, and there is no CPU"
        if workload.num_cpus == 0 and item.num_bytes > problem.accelerator_bytes:
            over = item.num_bytes - problem.accelerator_bytes
            return (
                f"operators that must stay together ({names}) need {item.num_bytes} bytes, {over} more "
                "than an accelerator has, and there is no CPU"
            )
    total = sum(item.num_bytes for item in problem.items)
    return (
        f"no split fits: all operators need {total} bytes, {workload.num_accelerators} accelerators have "
        f"{problem.accelerator_bytes} bytes each, and there are {workload.num_cpus} CPUs"
    )


def _dnn_stages(
    workload: Workload, devices: list[tuple[Kind, tuple[int, ...]]]
) -> list[dict[str, Any]]:
    free = {"accelerator": 0, "cpu": workload.num_accelerators}
    stages = []
    for kind, held in devices:
        stages.append(
            {
                "layers": [workload.operators[position].name for position in held],
                "predicted_ms": workload.load_ms(kind, held),
                "replicas": [{"device_type": kind, "ranks": [free[kind]], "share": 1}],
            }
        )
        free[kind] += 1
    return stages


def _piper_stages(model: Model, stages: tuple[Stage, ...]) -> list[dict[str, Any]]:
    behind = sum(stage.replicas for stage in stages)
    rank = 0
    found = []
    for stage in stages:
        behind -= stage.replicas
        t = stage.tensor_parallel
        replicas = []
        for _ in range(stage.replicas):
            ranks = list(range(rank, rank + t))
            replicas.append({"device_type": "device", "ranks": ranks, "share": 1})
            rank += t
        chosen = list(zip(stage.nodes, stage.options, strict=True))
        found.append(
            {
                "layers": [
                    f"{model.nodes[node].name} {model.nodes[node].id}" for node in stage.nodes
                ],
                "tensor_parallel": t,
                "options": {
                    str(model.nodes[node].id): model.nodes[node].options[t][number].id
                    for node, number in chosen
                    if number
                },
                "units_in_flight": units_in_flight(stage.replicas, behind),
                "predicted_ms": model.stage_seconds(stage) * 1e3,
                "predicted_peak_bytes": model.stage_bytes(stage, behind),
                "replicas": replicas,
            }
        )
    return found


def _why_no_plan(model: Model, planned: Planned) -> str:
    limit = model.memory_bytes / 2**30
    if planned.least_memory_bytes is None:
        return (
            f"no split into stages fits on {model.num_devices} devices, whatever their memory: a node lacks "
            "the tensor-parallel degrees that are allowed"
        )
    least = planned.least_memory_bytes / 2**30
    return (
        f"nothing fits into {limit:.3f} GiB per device: on {model.num_devices} devices the leanest plan "
        f"needs {least:.3f} GiB, {least - limit:.3f} GiB more; use more devices or more memory"
    )
