"""What SparsePipe's planner is asked: one chain on servers with devices of several types, and its formula.

Seconds of one micro-batch in steady state. A stage of m devices, of any types, that holds W bytes takes

    stage     (T + c (m - 1) W / (B m)) / m        T: on its slowest type, by the time of the whole model
    transfer  2 a / (B r)                          not divided by m

with c = 2. B is the bandwidth inside the server if all devices concerned are in one server, else the one
between servers. Work is split evenly over the replicas, whatever their types. Parameter, output and border
bytes are those of the first type's profile. Memory as in `problem`, with the devices in use behind a stage.

Source: SparsePipe's planner for unequal devices, which knows no order of types but its own.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stagewright.document import InputError

from .cuts import Cuts
from .problem import SPARSEPIPE_FACTOR, PlannedStage, check_positive
from .topology import FloatArray

SPANNING = -1
"""Stands for a server where devices are in several."""


@dataclass(frozen=True)
class DeviceClass:
    """The devices of one type in one server."""

    server: int
    device_type: str
    ranks: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class MixedProblem:
    """A chain of cuts on classes of devices."""

    cuts: Cuts
    classes: tuple[DeviceClass, ...]
    layer_s: dict[str, FloatArray]
    """By device type, (L,) forward and backward seconds of the cuts' layers."""
    inside_bytes_per_s: float
    between_bytes_per_s: float
    """Not used with one server."""
    reduce_factor: float = SPARSEPIPE_FACTOR
    compression: float | None = None
    """None: transfers are not counted."""
    straight: bool = False
    memory_bytes: float | None = None
    """Of every device; None: not limited."""

    def __post_init__(self) -> None:
        assert self.cuts.is_chain
        check_positive("the bandwidth inside a server", self.inside_bytes_per_s, "bytes per second")
        check_positive(
            "the bandwidth between servers", self.between_bytes_per_s, "bytes per second"
        )
        if self.compression is not None:
            check_positive("--activation_compression_ratio", self.compression, "1: uncompressed")
        if self.memory_bytes is not None:
            check_positive("--memory_size", self.memory_bytes, "bytes per device")
        if not self.classes:
            raise InputError("there is no device, expected at least one")

    @property
    def num_devices(self) -> int:
        return sum(len(group.ranks) for group in self.classes)

    @property
    def num_servers(self) -> int:
        return 1 + max(group.server for group in self.classes)

    @cached_property
    def types(self) -> tuple[str, ...]:
        """Device types, the fastest on the whole model first; of equals, the first in the file."""
        names = dict.fromkeys(group.device_type for group in self.classes)
        return tuple(sorted(names, key=lambda name: float(self.compute_s[name][-1])))

    @cached_property
    def compute_s(self) -> dict[str, FloatArray]:
        """(n + 1,) by device type, of the layers before each cut."""
        return {name: self.cuts.sums(values) for name, values in self.layer_s.items()}

    @cached_property
    def parameter_bytes(self) -> FloatArray:
        """(n + 1,) of the layers before each cut."""
        return self.cuts.sums(self.cuts.topology.parameter_bytes)

    @cached_property
    def kept_bytes(self) -> FloatArray:
        """(n + 1,) parameters and outputs of the layers before each cut."""
        return self.parameter_bytes + self.cuts.sums(self.cuts.topology.output_bytes)

    def bandwidth(self, server: int) -> float:
        """Return bytes/s among devices of one server, or of SPANNING."""
        return self.between_bytes_per_s if server == SPANNING else self.inside_bytes_per_s

    def transfer_s(self, server: int) -> FloatArray:
        """Return (n + 1,) seconds for what crosses each cut inside a server, or SPANNING."""
        if self.compression is None:
            return np.zeros(len(self.cuts))
        return 2.0 * self.cuts.crossing_bytes / self.bandwidth(server) / self.compression

    def rates(self, device_type: str, replicas: int, server: int) -> FloatArray:
        """Return (n + 1,) seconds up to each cut: a stage p, q takes their difference."""
        weight = self.reduce_factor * (replicas - 1) / (self.bandwidth(server) * replicas)
        return (self.compute_s[device_type] + weight * self.parameter_bytes) / replicas

    def most_kept_bytes(self, behind: int, replicas: int) -> float:
        """Return how many bytes a stage may have with so many devices behind it."""
        if self.memory_bytes is None or behind == 0:
            return math.inf
        return self.memory_bytes / -(-behind // replicas)

    def planned(
        self, first: int, last: int, devices: tuple[int, ...], ranks: tuple[int, ...], link: int
    ) -> PlannedStage:
        """Return a stage with its times.

        Args:
            devices: how many of each class.
            link: the server that it and the stage before it are in, or SPANNING.
        """
        used = [group for group, count in zip(self.classes, devices, strict=True) if count]
        kinds = {group.device_type for group in used}
        slowest = max(kinds, key=self.types.index)
        servers = {group.server for group in used}
        server = servers.pop() if len(servers) == 1 else SPANNING
        held = float(self.parameter_bytes[last] - self.parameter_bytes[first])
        number = len(ranks)
        work = self.reduce_factor * (number - 1) * held
        return PlannedStage(
            first=first,
            last=last,
            ranks=ranks,
            compute_s=float(self.compute_s[slowest][last] - self.compute_s[slowest][first])
            / number,
            reduce_s=work / (self.bandwidth(server) * number) / number,
            transfer_s=float(self.transfer_s(link)[first]) if first else 0.0,
        )

    @property
    def lower_bound_s(self) -> float:
        """No plan of the graph, contracted or not, is faster.

        Let C be the time of the whole model on a type and R the sum over layers of the least share of C that
        any type spends on the layer. A stage of m devices holds some of R, at least which its slowest type
        needs: m T >= C R(stage), and 1 / C of each of its devices is no less than that of the slowest.
        Summed over stages, T >= R / sum over devices of 1 / C.
        """
        whole_s = {name: float(values.sum()) for name, values in self.layer_s.items()}
        if min(whole_s.values()) == 0.0:
            return 0.0
        shares = np.array([values / whole_s[name] for name, values in self.layer_s.items()])
        speed = sum(len(group.ranks) / whole_s[group.device_type] for group in self.classes)
        return float(shares.min(axis=0).sum()) / speed
