"""Plans the text graphs of a server file for devices of several types: SparsePipe's job."""

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stagewright.document import InputError
from stagewright.optimizer.solvers import sparsepipe
from stagewright.pipedream_graph import TextGraph
from stagewright.server_file import ServerFile

from .cuts import chain_cuts
from .hierarchical import formula_of, why_nothing_fits
from .mixed_problem import SPANNING, DeviceClass, MixedProblem
from .output import Device, Planned
from .problem import SPARSEPIPE_FACTOR
from .report import Baseline, Outcome
from .topology import FloatArray, Topology, topology_of

MOST_OUTPUTS_APART = 1.5
"""Sparse tensors differ from batch to batch by some percent; other micro-batch sizes usually by 2 or more."""


@dataclass(frozen=True, kw_only=True)
class HybridRequest:
    """What the user asks for."""

    server_path: Path
    bandwidths: tuple[float, ...]
    """Bytes per second: inside servers, and between them; one for both."""
    compression: float | None = None
    straight: bool = False
    memory_bytes: float | None = None


def plan_hybrid(request: HybridRequest) -> tuple[Outcome, Planned]:
    """Return the best plan with what is said about it, and what is needed to write it.

    Raises:
        InputError: the request or a file is wrong, profiles do not match, or nothing fits into memory.
    """
    started = time.perf_counter()
    server_file = ServerFile.load(request.server_path)
    if len(request.bandwidths) not in (1, 2):
        raise InputError(
            f"-b has {len(request.bandwidths)} numbers, expected one, or two: inside and between servers"
        )
    paths = _profile_paths(server_file, request.server_path)
    graphs = {name: TextGraph.load(path) for name, path in paths.items()}
    topologies = {name: topology_of(graph) for name, graph in graphs.items()}
    differences = _compare(topologies, paths)
    first = next(iter(topologies))
    classes, devices = _classes(server_file)
    problem = MixedProblem(
        cuts=chain_cuts(topologies[first]),
        classes=classes,
        layer_s=_aligned_seconds(topologies),
        inside_bytes_per_s=request.bandwidths[0],
        between_bytes_per_s=request.bandwidths[-1],
        compression=request.compression,
        straight=request.straight,
        memory_bytes=request.memory_bytes,
    )
    pipeline = sparsepipe.solve(problem)
    if pipeline is None:
        raise why_nothing_fits(topologies[first], request.server_path, request.memory_bytes)
    outcome = Outcome(
        cost_model="sparsepipe",
        formula=formula_of(
            SPARSEPIPE_FACTOR,
            request.compression,
            "replicas do not share a transfer; a mixed stage runs at its slowest type's speed, split evenly",
        ),
        pipeline=pipeline,
        devices=devices,
        links=_links(request, problem),
        baselines=baselines_of(problem),
        seconds=time.perf_counter() - started,
        notes=(*differences, *_emulated(paths)),
    )
    planned = Planned(
        graph=graphs[first],
        pipeline=pipeline,
        devices=devices,
        graph_paths=paths,
        inside_bytes_per_s=request.bandwidths[0],
        between_bytes_per_s=request.bandwidths[-1],
    )
    return outcome, planned


def baselines_of(problem: MixedProblem) -> tuple[Baseline, ...]:
    """Return each type's single device, and data parallelism over all devices at the slowest one's speed."""
    single = [
        Baseline(
            f"single-stage pipeline on 1 x {name} (no communication)",
            float(problem.compute_s[name][-1]),
        )
        for name in problem.types
    ]
    number = problem.num_devices
    link = SPANNING if problem.num_servers > 1 else 0
    seconds = float(problem.rates(problem.types[-1], number, link)[-1])
    terms = (
        f"c = {problem.reduce_factor:g}, all-reduce not overlapped, each at the speed of "
        f"{problem.types[-1]}"
    )
    return (*single, Baseline(f"data parallelism on all {number} devices ({terms})", seconds))


def _profile_paths(server_file: ServerFile, server_path: Path) -> dict[str, Path]:
    """Return each type's profile: beside the server file if it is there, else from the current folder."""
    found: dict[str, Path] = {}
    for group in itertools.chain.from_iterable(s.devices for s in server_file.servers):
        beside = server_path.parent / group.profile
        path = beside if beside.exists() else Path(group.profile)
        if not path.exists():
            raise InputError(
                f"{server_path}: profile {group.profile} of {group.device_type} is neither beside the server "
                "file nor in the current folder; name an existing graph.txt"
            )
        known = found.setdefault(group.device_type, path)
        if known != path:
            raise InputError(
                f"{server_path}: {group.device_type} has the profiles {known} and {path}; give one type one "
                "profile"
            )
    return found


def _classes(server_file: ServerFile) -> tuple[tuple[DeviceClass, ...], tuple[Device, ...]]:
    """Return the classes and the devices by rank, in the file's order."""
    classes: list[DeviceClass] = []
    devices: list[Device] = []
    for number, server in enumerate(server_file.servers):
        for group in server.devices:
            ranks = tuple(range(len(devices), len(devices) + group.count))
            classes.append(DeviceClass(number, group.device_type, ranks))
            devices += [Device(server.name, group.device_type)] * group.count
    return tuple(classes), tuple(devices)


def _compare(topologies: Mapping[str, Topology], paths: Mapping[str, Path]) -> list[str]:
    """Return where sizes differ between profiles, for people.

    Raises:
        InputError: two profiles have different layers or edges, or clearly different micro-batch sizes.
    """
    first = next(iter(topologies))
    notes = []
    for name, topology in topologies.items():
        if _structure(topology) != _structure(topologies[first]):
            raise InputError(
                f"{paths[name]}: its layers or edges are not those of {paths[first]}; profile the same model "
                "at the same micro-batch size on every device type"
            )
        own, other = sum(topology.output_bytes), sum(topologies[first].output_bytes)
        if not other / MOST_OUTPUTS_APART <= own <= other * MOST_OUTPUTS_APART:
            raise InputError(
                f"{paths[name]}: its layers return {own:.0f} bytes in all, those of {paths[first]} "
                f"{other:.0f}; profile the same model at the same micro-batch size on every device type"
            )
        own, other = sum(topology.parameter_bytes), sum(topologies[first].parameter_bytes)
        if own != other:
            notes.append(
                f"{paths[name]} has {own:.0f} bytes of parameters, {paths[first]} {other:.0f}; the latter "
                "counts, as in SparsePipe"
            )
    return notes


def _structure(topology: Topology) -> dict[str, set[str]]:
    names = [node.name for node in topology.nodes]
    return {
        name: {names[t] for t in targets}
        for name, targets in zip(names, topology.targets, strict=True)
    }


def _aligned_seconds(topologies: Mapping[str, Topology]) -> dict[str, FloatArray]:
    """Return each type's seconds in the first type's order of layers."""
    first = next(iter(topologies.values()))
    place = {node.name: number for number, node in enumerate(first.nodes)}
    found = {}
    for name, topology in topologies.items():
        seconds = np.zeros(len(place))
        seconds[[place[node.name] for node in topology.nodes]] = (
            topology.forward_s + topology.backward_s
        )
        found[name] = seconds
    return found


def _links(request: HybridRequest, problem: MixedProblem) -> tuple[str, ...]:
    inside = f"inside a server {request.bandwidths[0] / 1e9:.3f} GB/s"
    if problem.num_servers == 1:
        return (inside,)
    return (inside, f"between servers {request.bandwidths[-1] / 1e9:.3f} GB/s")


def _emulated(paths: Mapping[str, Path]) -> list[str]:
    """Return the first comment of each profile that has one: it says how the profile was made."""
    notes = []
    for name, path in paths.items():
        line = path.read_text(encoding="utf-8").split("\n", 1)[0]
        if line.startswith("#"):
            notes.append(f"profile of {name}: {line.lstrip('# ')}")
    return notes
