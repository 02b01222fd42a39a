"""Plans for inference: the least latency of one input while every stage keeps up with the inputs."""

import time
from dataclasses import dataclass
from pathlib import Path

from stagewright.document import InputError
from stagewright.optimizer.solvers import inference
from stagewright.pipedream_graph import TextGraph

from .output import Device, Planned
from .problem import check_positive
from .report import Baseline, Outcome
from .topology import topology_of


@dataclass(frozen=True, kw_only=True)
class InferenceRequest:
    """What the user asks for."""

    graph_path: Path
    num_devices: int
    period_s: float
    """Between two inputs."""
    bandwidth_bytes_per_s: float = 1e9
    devices_per_server: int | None = None
    """None: one server."""
    share_input: bool = True
    """Whether replicas share one input, as PipeDream counts; False: each input is computed by one."""
    count_transfers: bool = True
    straight: bool = False
    memory_bytes: float | None = None
    device_type: str = "device"


def plan_inference(request: InferenceRequest) -> tuple[Outcome, Planned]:
    """Return the plan of least latency with what is said about it, and what is needed to write it.

    Raises:
        InputError: the request or the file is wrong, or no plan keeps up.
    """
    started = time.perf_counter()
    if request.num_devices < 1:
        raise InputError(f"-n is {request.num_devices}, expected at least 1")
    check_positive("the time between inputs", request.period_s, "how often one comes")
    size = request.devices_per_server or request.num_devices
    if size < 1 or request.num_devices % size:
        raise InputError(
            f"-m is {size}, expected a number that divides the {request.num_devices} devices"
        )
    graph = TextGraph.load(request.graph_path)
    problem = inference.InferenceProblem(
        cuts=inference.cuts_for(topology_of(graph, keep_inputs=True), request.num_devices),
        num_devices=request.num_devices,
        bandwidth_bytes_per_s=request.bandwidth_bytes_per_s,
        period_s=request.period_s,
        share_input=request.share_input,
        count_transfers=request.count_transfers,
        straight=request.straight,
        memory_bytes=request.memory_bytes,
    )
    pipeline = inference.solve(problem)
    devices = tuple(
        Device(f"server{rank // size}", request.device_type) for rank in range(request.num_devices)
    )
    outcome = Outcome(
        cost_model="pipedream-inference" if request.share_input else "inference",
        formula=_formula(request),
        pipeline=pipeline,
        devices=devices,
        links=(f"all devices {request.bandwidth_bytes_per_s / 1e9:.2f} GB/s",),
        baselines=(
            Baseline(
                f"single-stage pipeline on 1 x {request.device_type} (forward only)",
                float(problem.forward_s[-1]),
            ),
        ),
        seconds=time.perf_counter() - started,
        objective="latency",
    )
    planned = Planned(
        graph=graph,
        pipeline=pipeline,
        devices=devices,
        graph_paths={request.device_type: request.graph_path},
        inside_bytes_per_s=request.bandwidth_bytes_per_s,
        between_bytes_per_s=request.bandwidth_bytes_per_s,
    )
    return outcome, planned


def _formula(request: InferenceRequest) -> str:
    replicas = (
        "T / m per stage of m replicas, as if they shared one input (so PipeDream counts)"
        if request.share_input
        else "T per stage, T / m per input with m replicas"
    )
    transfers = "counted" if request.count_transfers else "NOT counted"
    return (
        f"forward only, {replicas}; each stage within {request.period_s:g} s per input; "
        f"transfers {transfers}, one way"
    )
