"""Solver for inference: the least latency of one input, with every stage within a period.

Forward only. A stage with T seconds of layers and m replicas is within the period t if T / m <= t; a border
of a bytes into it takes a / (B m). PipeDream's planner counts T / m as the stage's latency, too, as if its
replicas shared one input; `share_input` says so. Without it an input is computed by one replica and sent over
one link: the latency is T + a / B, and the transfer must keep up with the period, too. A dynamic programme
over pairs of nested cuts and devices used; O(n^2 N^2) time, idle devices allowed, nothing recurses.

Source: the planner for inference published with Narayanan et al., "PipeDream", SOSP 2019.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stagewright.document import InputError
from stagewright.optimizer.pipedream.cuts import Cuts, cuts_of, thinned
from stagewright.optimizer.pipedream.problem import (
    PlannedPipeline,
    PlannedStage,
    check_positive,
    contraction_of,
)
from stagewright.optimizer.pipedream.topology import FloatArray, Topology

MOST_WORK = 6e8
"""Pairs of cuts times pairs of numbers of devices."""
MOST_CUTS = 2000
ROUNDING = 1e-12
"""A stage this much above the period, relative, still counts as within it."""


@dataclass(frozen=True, kw_only=True)
class InferenceProblem:
    """One graph on equal devices and equal links."""

    cuts: Cuts
    num_devices: int
    bandwidth_bytes_per_s: float
    period_s: float
    """Between two inputs."""
    share_input: bool
    """Whether the replicas of a stage are taken to work on one input together, as PipeDream does."""
    count_transfers: bool = True
    straight: bool = False
    memory_bytes: float | None = None
    """For a stage's parameters and outputs; None: not limited."""

    def __post_init__(self) -> None:
        if self.num_devices < 1:
            raise InputError(f"the number of devices is {self.num_devices}, expected at least 1")
        check_positive("the bandwidth", self.bandwidth_bytes_per_s, "bytes per second")
        check_positive("the time between inputs", self.period_s, "in seconds or ms, as named")

    @cached_property
    def forward_s(self) -> FloatArray:
        """(n + 1,) of the layers before each cut."""
        return self.cuts.sums(self.cuts.topology.forward_s)

    @cached_property
    def transfer_s(self) -> FloatArray:
        """(n + 1,) seconds for what crosses each cut over one link; zeros if transfers are not counted."""
        if not self.count_transfers:
            return np.zeros(len(self.cuts))
        return self.cuts.crossing_bytes / self.bandwidth_bytes_per_s


def cuts_for(topology: Topology, num_devices: int) -> Cuts:
    """Return as many cuts of a graph as the solver can take in about two seconds."""
    most = min(int((MOST_WORK * 4 / (num_devices * (num_devices + 1))) ** 0.5), MOST_CUTS)
    return thinned(cuts_of(topology, max(most, 2)), max(most, 2))


def solve(problem: InferenceProblem) -> PlannedPipeline:
    """Return the plan of least latency.

    Raises:
        InputError: no plan is within the period.
    """
    size, num_devices = len(problem.cuts), problem.num_devices
    best = np.full((num_devices + 1, size), np.inf)
    best[:, 0] = 0.0
    came: dict[tuple[int, int], tuple[int, int]] = {}
    most = 1 if problem.straight else num_devices
    stages_s = {replicas: _latency_s(problem, replicas) for replicas in range(1, most + 1)}
    for count in range(1, num_devices + 1):
        for replicas in range(1, min(most, count) + 1):
            total = best[count - replicas][:, None] + stages_s[replicas]
            starts = np.argmin(total, axis=0)
            values = total[starts, np.arange(size)]
            for better in np.flatnonzero(values < best[count] * (1 - ROUNDING)):
                best[count, better] = values[better]
                came[count, int(better)] = (int(starts[better]), replicas)
    if not np.isfinite(best[-1, -1]):
        raise _why_not(problem)
    used = int(np.argmin(best[:, -1]))
    stages: list[PlannedStage] = []
    cut, value_s = size - 1, float(best[used, -1])
    while cut:
        start, replicas = came[used, cut]
        used -= replicas
        stages.append(_planned(problem, start, cut, used, replicas))
        cut = start
    contracted = contraction_of(problem.cuts)
    return PlannedPipeline(
        solver="exact",
        stages=tuple(reversed(stages)),
        value_s=value_s,
        bound_s=min(_bound_s(problem), value_s) if contracted else value_s,
        space="all stages between nested cuts, any replicas, idle devices allowed"
        + (f"; {contracted}" if contracted else ""),
        cuts=problem.cuts,
    )


def _latency_s(problem: InferenceProblem, replicas: int) -> FloatArray:
    """Return (n + 1, n + 1) latencies of the stages between each two cuts; infinite beyond the period."""
    compute_s = problem.forward_s[None, :] - problem.forward_s[:, None]
    limit_s = problem.period_s * (1 + ROUNDING)
    allowed = problem.cuts.nested & (compute_s / replicas <= limit_s)
    if problem.memory_bytes is not None:
        topology = problem.cuts.topology
        kept = problem.cuts.sums(topology.parameter_bytes + topology.output_bytes)
        allowed &= kept[None, :] - kept[:, None] <= problem.memory_bytes
    divisor = replicas if problem.share_input else 1
    if not problem.share_input:
        allowed &= (problem.transfer_s / replicas <= limit_s)[:, None]
    return np.where(allowed, (compute_s + problem.transfer_s[:, None]) / divisor, np.inf)


def _planned(
    problem: InferenceProblem, first: int, last: int, start: int, replicas: int
) -> PlannedStage:
    divisor = replicas if problem.share_input else 1
    return PlannedStage(
        first=first,
        last=last,
        ranks=tuple(range(start, start + replicas)),
        compute_s=float(problem.forward_s[last] - problem.forward_s[first]) / divisor,
        reduce_s=0.0,
        transfer_s=float(problem.transfer_s[first]) / divisor,
    )


def _bound_s(problem: InferenceProblem) -> float:
    """Return what no plan of the graph is faster than: all layers, without transfers."""
    return float(problem.forward_s[-1]) / (problem.num_devices if problem.share_input else 1)


def _why_not(problem: InferenceProblem) -> InputError:
    """Return which limit no plan can keep."""
    topology = problem.cuts.topology
    most = 1 if problem.straight else problem.num_devices
    heaviest = int(np.argmax(topology.forward_s))
    layer_s, name = float(topology.forward_s[heaviest]), topology.nodes[heaviest].name
    if layer_s / most > problem.period_s:
        return InputError(
            f"layer {name!r} takes {layer_s * 1e3:.3f} ms forward, on {most} replicas "
            f"{layer_s / most * 1e3:.3f} ms per input, more than the {problem.period_s * 1e3:.3f} ms between "
            "inputs; allow more time or more devices"
        )
    total_s = float(problem.forward_s[-1])
    limit = problem.memory_bytes
    memory = "" if limit is None else f" within {limit:g} bytes per device"
    return InputError(
        f"no plan on {problem.num_devices} devices keeps up with an input every "
        f"{problem.period_s * 1e3:.3f} ms{memory} ({total_s * 1e3:.3f} ms of forward in all); allow "
        "more time or more devices"
    )
