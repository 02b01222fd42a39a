"""The cluster: device types, servers that hold devices of them, and the links between devices."""

import itertools
import math
from functools import cached_property
from pathlib import Path

from stagewright.document import Format, Record, load_record, save_record

CLUSTER_FORMAT = Format(
    name="stagewright.cluster",
    version=2,
    upgrades={1: dict},  # Version 2 adds links.matrix, which may be left out.
)


class DeviceType(Record):
    """A model of GPU (or a CPU)."""

    memory_bytes: int
    profile: str
    """The layer graph measured on it; a path relative to the cluster file."""
    price_per_hour: float | None = None

    def __post_init__(self) -> None:
        if self.memory_bytes < 1:
            raise ValueError(f"memory_bytes is {self.memory_bytes}, expected at least 1")
        price = self.price_per_hour
        if price is not None and not (math.isfinite(price) and price >= 0):
            raise ValueError(f"price_per_hour is {price}, expected a finite number from 0")


class DeviceGroup(Record):
    """Devices of one type in a server."""

    type: str
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count of {self.type!r} is {self.count}, expected at least 1")


class Server(Record):
    """A machine with devices; its ranks are numbered in this order."""

    name: str
    devices: tuple[DeviceGroup, ...]

    @property
    def num_devices(self) -> int:
        return sum(group.count for group in self.devices)


class Link(Record):
    """What a message between two devices costs: latency_ms + bytes / bandwidth."""

    bandwidth_bytes_per_s: float
    latency_ms: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bandwidth_bytes_per_s) and self.bandwidth_bytes_per_s > 0):
            raise ValueError(
                f"bandwidth_bytes_per_s is {self.bandwidth_bytes_per_s}, expected a finite number above 0"
            )
        if not (math.isfinite(self.latency_ms) and self.latency_ms >= 0):
            raise ValueError(f"latency_ms is {self.latency_ms}, expected a finite number from 0")

    def transfer_ms(self, num_bytes: float) -> float:
        """Return the time of one message."""
        return self.latency_ms + num_bytes / self.bandwidth_bytes_per_s * 1e3


class PairLink(Link):
    """The measured link between devices of two servers, or inside one that is named twice."""

    servers: tuple[str, str]

    @property
    def link(self) -> Link:
        return Link(bandwidth_bytes_per_s=self.bandwidth_bytes_per_s, latency_ms=self.latency_ms)


class Links(Record):
    """The links of a cluster, by level, and pair by pair where they were measured."""

    inside_server: Link
    between_servers: Link | None = None
    """None: there is one server, or the matrix has every pair."""
    matrix: tuple[PairLink, ...] = ()
    """Links that differ from those of their level; each pair of servers once, in either order."""


class Slot(Record):
    """One device of the cluster and the rank that runs on it."""

    rank: int
    server: str
    device_type: str


class Cluster(Record, dict=True):
    """What there is to train on."""

    device_types: dict[str, DeviceType]
    servers: tuple[Server, ...]
    links: Links

    def __post_init__(self) -> None:
        names = [server.name for server in self.servers]
        if not names:
            raise ValueError("servers is empty, expected at least one server")
        if len(set(names)) < len(names):
            raise ValueError(f"servers are named {names}; each needs a name of its own")
        for server in self.servers:
            if not server.devices:
                raise ValueError(f"server {server.name!r} has no devices")
            for group in server.devices:
                if group.type not in self.device_types:
                    raise ValueError(
                        f"server {server.name!r} has devices of type {group.type!r}, which is not among "
                        f"the device_types {sorted(self.device_types)}"
                    )
        self._check_matrix(names)
        missing = [
            pair
            for pair in itertools.combinations(names, 2)
            if frozenset(pair) not in self._measured
        ]
        if missing and self.links.between_servers is None:
            raise ValueError(
                "links.between_servers is missing; it is needed as there are several servers and "
                f"links.matrix has no link between {missing[0][0]!r} and {missing[0][1]!r}"
            )

    def _check_matrix(self, names: list[str]) -> None:
        for pair in self.links.matrix:
            for name in pair.servers:
                if name not in names:
                    raise ValueError(
                        f"links.matrix has a link of server {name!r}, which is not among the servers {names}"
                    )
        if len(self._measured) < len(self.links.matrix):
            pairs = [frozenset(pair.servers) for pair in self.links.matrix]
            twice = next(sorted(pair) for pair in pairs if pairs.count(pair) > 1)
            raise ValueError(f"links.matrix has several links of {twice}, expected each pair once")

    @classmethod
    def load(cls, path: Path) -> "Cluster":
        return load_record(path, CLUSTER_FORMAT, cls)

    def save(self, path: Path) -> None:
        save_record(path, CLUSTER_FORMAT, self)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All devices in rank order: server by server, as torchrun numbers them node by node."""
        devices = [
            (server.name, group.type)
            for server in self.servers
            for group in server.devices
            for _ in range(group.count)
        ]
        return tuple(
            Slot(rank=rank, server=server, device_type=device_type)
            for rank, (server, device_type) in enumerate(devices)
        )

    @cached_property
    def _measured(self) -> dict[frozenset[str], Link]:
        """The matrix by pair; a server's own link by its name alone."""
        return {frozenset(pair.servers): pair.link for pair in self.links.matrix}

    def link_between(self, first: str, second: str) -> Link:
        """Return the link between devices of two servers, or inside one if they are the same."""
        measured = self._measured.get(frozenset((first, second)))
        if measured is not None:
            return measured
        if first == second:
            return self.links.inside_server
        assert self.links.between_servers is not None
        return self.links.between_servers
