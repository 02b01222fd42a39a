"""Plans a text graph for equal devices behind nested levels of links: PipeDream's job."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

from stagewright.document import InputError
from stagewright.optimizer.solvers import pipedream, replicated_stages
from stagewright.pipedream_graph import TextGraph

from .cuts import Cuts
from .output import Device, Planned
from .problem import PIPEDREAM_FACTOR, Level, LevelsProblem, PlannedPipeline, check_positive
from .report import Baseline, Outcome
from .topology import Topology, topology_of

SOLVERS = ("pipedream", "exact")


@dataclass(frozen=True, kw_only=True)
class HierarchicalRequest:
    """What the user asks for."""

    graph_path: Path
    levels: tuple[Level, ...]
    """Innermost first."""
    solver: str = "pipedream"
    compression: float | None = None
    straight: bool = False
    memory_bytes: float | None = None
    fewer_devices: bool = False
    reduce_factor: float = PIPEDREAM_FACTOR
    device_type: str = "device"
    """What the profile was measured on, for people: a text graph does not say."""


def plan_hierarchical(request: HierarchicalRequest) -> tuple[Outcome, Planned]:
    """Return the best plan with what is said about it, and what is needed to write it.

    Raises:
        InputError: the request or the file is wrong, or nothing fits into memory.
    """
    started = time.perf_counter()
    for level in request.levels:
        check_positive("a bandwidth", level.bandwidth_bytes_per_s, "bytes per second")
        if level.num_members < 1:
            raise InputError(f"a level has {level.num_members} devices, expected at least 1")
    graph = TextGraph.load(request.graph_path)
    topology = topology_of(graph)
    problem, pipeline = _solve(topology, request)
    if pipeline is None:
        raise why_nothing_fits(topology, request.graph_path, request.memory_bytes)
    size = request.levels[0].num_members
    devices = tuple(
        Device(f"server{rank // size}", request.device_type) for rank in range(problem.num_devices)
    )
    outcome = Outcome(
        cost_model="pipedream",
        formula=formula_of(
            request.reduce_factor, request.compression, "its stage's replicas share a transfer"
        ),
        pipeline=pipeline,
        devices=devices,
        links=tuple(
            f"level {number}: {level.num_members} members at "
            f"{level.bandwidth_bytes_per_s / 1e9:.2f} GB/s"
            for number, level in enumerate(request.levels, 1)
        ),
        baselines=baselines_of(problem, request.device_type),
        seconds=time.perf_counter() - started,
        notes=_notes(pipeline, request),
    )
    planned = Planned(
        graph=graph,
        pipeline=pipeline,
        devices=devices,
        graph_paths={request.device_type: request.graph_path},
        inside_bytes_per_s=request.levels[0].bandwidth_bytes_per_s,
        between_bytes_per_s=request.levels[-1].bandwidth_bytes_per_s,
    )
    return outcome, planned


def _solve(
    topology: Topology, request: HierarchicalRequest
) -> tuple[LevelsProblem, PlannedPipeline | None]:
    """Return the problem that was solved, and its plan.

    `exact` takes the better of the plans on consecutive devices and, with several levels, the nested ones.
    """
    nested = _problem(request, pipedream.cuts_for(topology, request.levels))
    if request.solver == "pipedream":
        return nested, pipedream.solve(nested)
    if request.solver != "exact":
        raise InputError(f"solver is {request.solver!r}, expected one of {', '.join(SOLVERS)}")
    num_devices = math.prod(level.num_members for level in request.levels)
    problem = _problem(request, replicated_stages.cuts_for(topology, num_devices))
    flat = replicated_stages.solve(problem)
    if len(request.levels) == 1 or flat is None:
        return problem, flat
    other = pipedream.solve(nested)
    space = f"{flat.space}; and the plans of nested levels"
    best = flat if other is None or flat.value_s <= other.value_s else other
    same = flat.cuts.complete and nested.cuts.complete
    bound_s = best.value_s if same else min(problem.lower_bound_s, best.value_s)
    return problem, PlannedPipeline(
        solver="exact",
        stages=best.stages,
        value_s=best.value_s,
        bound_s=bound_s,
        space=space,
        cuts=best.cuts,
        nested=best.nested,
    )


def _problem(request: HierarchicalRequest, cuts: Cuts) -> LevelsProblem:
    return LevelsProblem(
        cuts=cuts,
        levels=request.levels,
        reduce_factor=request.reduce_factor,
        compression=request.compression,
        straight=request.straight,
        memory_bytes=request.memory_bytes,
        fewer_devices=request.fewer_devices,
    )


def baselines_of(problem: LevelsProblem, device_type: str) -> tuple[Baseline, ...]:
    """Return one device, and data parallelism over all devices level by level.

    The latter is PipeDream's: t <- (t + c (N - 1) W / (B N g)) / N at each level, g the level below's N.
    """
    one_s = seconds = float(problem.compute_s[-1])
    weights, below = float(problem.parameter_bytes[-1]), 1
    for level in problem.levels:
        rate = level.bandwidth_bytes_per_s * level.num_members * below
        reduce_s = problem.reduce_factor * (level.num_members - 1) * weights / rate
        seconds = (seconds + reduce_s) / level.num_members
        below = level.num_members
    terms = f"c = {problem.reduce_factor:g}, all-reduce not overlapped"
    return (
        Baseline(f"single-stage pipeline on 1 x {device_type} (no communication)", one_s),
        Baseline(f"data parallelism on {problem.num_devices} x {device_type} ({terms})", seconds),
    )


def formula_of(reduce_factor: float, compression: float | None, sharing: str) -> str:
    """Return which formula was used, for people."""
    transfers = (
        "transfers between stages NOT counted (give --activation_compression_ratio 1 to count them)"
        if compression is None
        else f"transfers between stages counted (compression {compression:g}), beside compute; {sharing}"
    )
    return (
        f"c = {reduce_factor:g} in the all-reduce c (m - 1) / m x bytes, which follows compute without "
        f"overlap; {transfers}"
    )


def why_nothing_fits(topology: Topology, path: Path, memory_bytes: float | None) -> InputError:
    """Return that no plan fits into memory, and the layer that needs most."""
    assert memory_bytes is not None, "without a limit there is always a plan"
    kept = topology.parameter_bytes + topology.output_bytes
    largest = int(kept.argmax())
    over = kept[largest] - memory_bytes
    alone = f"{over:.0f} bytes too many" if over > 0 else "so it is stages that do not fit"
    return InputError(
        f"{path}: no plan fits into {memory_bytes:.0f} bytes per device (parameters and outputs of a stage, "
        "once for each micro-batch that the devices behind it make it keep); the largest layer, "
        f"{topology.nodes[largest].name!r}, has {kept[largest]:.0f} bytes, {alone}; give more with -s, or "
        "drop --use_memory_constraint"
    )


def _notes(pipeline: PlannedPipeline, request: HierarchicalRequest) -> tuple[str, ...]:
    notes = []
    if len(request.levels) > 1 and request.solver == "pipedream":
        notes.append(
            "nested levels cannot give a stage parts of several servers; --solver exact can"
        )
    if request.memory_bytes is not None:
        notes.append(
            "memory is counted as PipeDream does: nothing at the last stage, no gradients or optimizer "
            "state; stagewright optimize counts all of it"
        )
    return tuple(notes)
