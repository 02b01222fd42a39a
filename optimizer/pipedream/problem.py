"""What PipeDream's planner is asked, and its formula for one replicated stage.

Seconds of one micro-batch in steady state. A stage of m replicas that computes T and holds W bytes of
parameters takes

    stage     (T + c (m - 1) W / (B m)) / m        all-reduce behind compute, nothing overlaps
    transfer  2 a / (B m) / r                      activations and gradients, beside compute

with c = 4 for PipeDream (sum up and down, each both ways) and c = 2 for SparsePipe, B bytes/s, a bytes over
the border, r the compression ratio. Without r, transfers are not counted at all. A plan takes its slowest
stage or transfer. The first stage is charged for no border; each later one for both of its borders, with
its own m. With a memory limit s, a stage must keep ceil(D / m) (A + W) <= s, where D devices come behind
it and A are the bytes that its layers return; no gradients, no optimizer state, and nothing at the end.

Source: Narayanan et al., "PipeDream", SOSP 2019, and the planner published with it.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stagewright.document import InputError

from .cuts import Cuts
from .topology import FloatArray

PIPEDREAM_FACTOR = 4.0
SPARSEPIPE_FACTOR = 2.0


@dataclass(frozen=True)
class Level:
    """Groups of equal size on one kind of link: devices in a server, servers in a rack, ..."""

    num_members: int
    bandwidth_bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class LevelsProblem:
    """One graph on equal devices behind nested levels of links."""

    cuts: Cuts
    levels: tuple[Level, ...]
    """Innermost first."""
    reduce_factor: float = PIPEDREAM_FACTOR
    compression: float | None = None
    """None: transfers are not counted."""
    straight: bool = False
    """No replicas."""
    memory_bytes: float | None = None
    """None: not limited."""
    fewer_devices: bool = False
    """Whether the nested planner may leave members of a level idle."""

    def __post_init__(self) -> None:
        if not self.levels:
            raise InputError(
                "there is no level of devices, expected at least one number of devices"
            )
        for level in self.levels:
            if level.num_members < 1:
                raise InputError(
                    f"a level has {level.num_members} devices, expected at least 1 on every level"
                )
            check_positive("a bandwidth", level.bandwidth_bytes_per_s, "bytes per second")
        if self.compression is not None:
            check_positive("--activation_compression_ratio", self.compression, "1: uncompressed")
        if self.memory_bytes is not None:
            check_positive("--memory_size", self.memory_bytes, "bytes per device")

    @property
    def num_devices(self) -> int:
        return math.prod(level.num_members for level in self.levels)

    @cached_property
    def compute_s(self) -> FloatArray:
        """(n + 1,) forward and backward of the layers before each cut."""
        return self.cuts.sums(self.cuts.topology.forward_s + self.cuts.topology.backward_s)

    @cached_property
    def parameter_bytes(self) -> FloatArray:
        """(n + 1,) of the layers before each cut."""
        return self.cuts.sums(self.cuts.topology.parameter_bytes)

    @cached_property
    def kept_bytes(self) -> FloatArray:
        """(n + 1,) parameters and outputs of the layers before each cut."""
        return self.parameter_bytes + self.cuts.sums(self.cuts.topology.output_bytes)

    def transfer_s(self, bandwidth_bytes_per_s: float, replicas: int) -> FloatArray:
        """Return (n + 1,) seconds for what crosses each cut; zeros if transfers are not counted."""
        if self.compression is None:
            return np.zeros(len(self.cuts))
        crossing = self.cuts.crossing_bytes
        return 2.0 * crossing / (bandwidth_bytes_per_s * replicas) / self.compression

    def reduce_s(self, num_bytes: float, replicas: int, bandwidth_bytes_per_s: float) -> float:
        """Return the all-reduce of one stage, in seconds per micro-batch of the stage."""
        work = self.reduce_factor * (replicas - 1) * num_bytes
        return work / (bandwidth_bytes_per_s * replicas) / replicas

    @property
    def lower_bound_s(self) -> float:
        """No plan of the graph, contracted or not, is faster: the work shared by all, the heaviest layer.

        The layer's stage has some number of replicas and takes at least what that layer alone would.
        """
        topology = self.cuts.topology
        layers_s = topology.forward_s + topology.backward_s
        most = 1 if self.straight else self.num_devices
        fastest = max(level.bandwidth_bytes_per_s for level in self.levels)
        groups = math.prod(level.num_members for level in self.levels[:-1])
        alone_s = np.full(len(layers_s), np.inf)
        for replicas in range(1, most + 1):
            # At an upper level PipeDream divides an all-reduce by the devices of the level below.
            rate = fastest * replicas * groups
            reduce_s = self.reduce_factor * (replicas - 1) * topology.parameter_bytes / rate
            alone_s = np.minimum(alone_s, (layers_s + reduce_s) / replicas)
        return max(float(layers_s.sum()) / self.num_devices, float(alone_s.max()))


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan: what lies between two cuts, and the ranks that run it."""

    first: int
    """The cut before it."""
    last: int
    """The cut behind it."""
    ranks: tuple[int, ...]
    compute_s: float
    """Per micro-batch of the whole model: divided by the replicas."""
    reduce_s: float
    """Per micro-batch, likewise."""
    transfer_s: float
    """Of what it receives and the gradients that it sends back; 0 where transfers are not counted."""
    out_transfer_s: float = 0.0
    """Of what it sends on, where the formula charges it for that."""

    @property
    def stage_s(self) -> float:
        """What the formula says of it alone."""
        return max(self.compute_s + self.reduce_s, self.transfer_s, self.out_transfer_s)


@dataclass(frozen=True, kw_only=True)
class PlannedPipeline:
    """What every solver here returns."""

    solver: str
    stages: tuple[PlannedStage, ...]
    """From the first layer to the last."""
    value_s: float
    """Under the formula."""
    bound_s: float
    """No plan for the graph in the space is faster."""
    space: str
    """Which plans were searched, for people."""
    cuts: Cuts
    """What the stages' first and last refer to."""
    nested: tuple[str, ...] = ()
    """Per upper level, what each of its stages is, for people."""


def check_positive(what: str, value: float, meaning: str) -> None:
    """Raise InputError unless a value is finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{what} is {value:g}, expected a finite number above 0 ({meaning})")


def contraction_of(cuts: Cuts) -> str:
    """Return how a graph was contracted, for people; empty if it was not."""
    num_layers = len(cuts.topology.nodes)
    if cuts.complete:
        return ""
    thin = "" if len(cuts) == num_layers + 1 else ", thinned evenly by compute time"
    return (
        f"the graph of {num_layers} layers was contracted to a chain of {len(cuts) - 1} pieces (one "
        f"topological order that keeps few bytes alive{thin})"
    )
