"""SparsePipe's server file: servers, and how many devices of each type they hold.

    Server0
        TitanV 1 graph_titanv.txt
        TitanXP 3 graph_titanxp.txt

A line that is not indented and starts with "Server" begins a server; a line of three words (type, count,
path of the type's profile) adds devices to it. Blank lines and lines that start with # are passed over.
The file holds neither memory nor bandwidth; whoever makes a cluster of it must know them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stagewright.cluster import Cluster, DeviceGroup, DeviceType, Link, Links, Server
from stagewright.document import InputError, read_text, write_atomically

HEADER = "Server"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDevices:
    """One device line."""

    device_type: str
    count: int
    profile: str
    """Path of the type's profile, as it is in the file."""

    def __post_init__(self) -> None:
        for what, word in (("device type", self.device_type), ("profile", self.profile)):
            if not re.fullmatch(r"\S+", word):
                raise ValueError(f"{what} is {word!r}, expected one word")
        if self.device_type.startswith("#"):
            raise ValueError(f"device type is {self.device_type!r}, but # starts a comment")
        if self.count < 1:
            raise ValueError(f"count of {self.device_type} is {self.count}, expected at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextServer:
    """One server and its device lines, in order."""

    name: str
    devices: tuple[TextDevices, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch(rf"{HEADER}\S*", self.name):
            raise ValueError(
                f"server is named {self.name!r}, expected one word that starts with {HEADER}"
            )
        if not self.devices:
            raise ValueError(f"{self.name} has no devices, expected TYPE COUNT PROFILE below it")
        types = [group.device_type for group in self.devices]
        if len(set(types)) < len(types):
            raise ValueError(f"{self.name} has the types {types}; give each type one line")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFile:
    """A whole file: its servers, in order."""

    servers: tuple[TextServer, ...]

    def __post_init__(self) -> None:
        names = [server.name for server in self.servers]
        if not names:
            raise ValueError("there is no server, expected at least one")
        if len(set(names)) < len(names):
            raise ValueError(f"servers are named {names}; each needs a name of its own")

    def __str__(self) -> str:
        """The canonical text: four spaces before a device line."""
        lines = []
        for server in self.servers:
            lines.append(server.name)
            lines += [f"    {g.device_type} {g.count} {g.profile}" for g in server.devices]
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def load(cls, path: Path) -> "ServerFile":
        """Return the servers in a file.

        Raises:
            InputError: a line is malformed; the message names the file and the line.
        """
        return parse_servers(read_text(path), str(path))

    def save(self, path: Path) -> None:
        write_atomically(path, str(self).encode())


def parse_servers(text: str, source: str = "server file") -> ServerFile:
    """Return the servers that a text lists; source names the text in errors.

    Raises:
        InputError: a line is malformed; the message names source and line.
    """
    servers: dict[str, tuple[int, list[TextDevices]]] = {}
    name = None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            if not line[0].isspace() and line.startswith(HEADER):
                name = _parse_header(line, servers)
                servers[name] = (number, [])
                continue
            if name is None:
                raise ValueError(f"found {line!r}, expected a server first: {HEADER}0")
            group = _parse_devices(line)
            if any(group.device_type == other.device_type for other in servers[name][1]):
                raise ValueError(
                    f"{name} has {group.device_type} twice; add the counts on one line"
                )
            servers[name][1].append(group)
        except ValueError as error:
            raise InputError(f"{source}:{number}: {error}") from None
    if not servers:
        raise InputError(f"{source}: has no server, expected a line such as {HEADER}0")
    found = []
    for server_name, (number, groups) in servers.items():
        try:
            found.append(TextServer(name=server_name, devices=tuple(groups)))
        except ValueError as error:
            raise InputError(f"{source}:{number}: {error}") from None
    return ServerFile(servers=tuple(found))


def to_cluster(
    server_file: ServerFile,
    *,
    memory_bytes: Mapping[str, int],
    inside_server: Link,
    between_servers: Link | None = None,
) -> Cluster:
    """Return the cluster of a server file, with the figures that the file does not hold.

    Profile paths are taken over as they are.

    Args:
        memory_bytes: the memory of one device, by device type.
        between_servers: needed if there are several servers.

    Raises:
        InputError: a device type lacks its memory or has two profiles, or between_servers is missing.
    """
    profiles: dict[str, str] = {}
    for server in server_file.servers:
        for group in server.devices:
            known = profiles.setdefault(group.device_type, group.profile)
            if known != group.profile:
                raise InputError(
                    f"{server.name} names {group.profile} as the profile of {group.device_type}, but "
                    f"{known} is named before; give one type one profile"
                )
    for device_type in profiles:
        if device_type not in memory_bytes:
            raise InputError(
                f"the memory of {device_type} is not given, only of {sorted(memory_bytes)}; give the "
                "memory in bytes of every device type"
            )
    servers = tuple(
        Server(
            name=server.name,
            devices=tuple(DeviceGroup(type=g.device_type, count=g.count) for g in server.devices),
        )
        for server in server_file.servers
    )
    try:
        return Cluster(
            device_types={
                name: DeviceType(memory_bytes=memory_bytes[name], profile=profile)
                for name, profile in profiles.items()
            },
            servers=servers,
            links=Links(inside_server=inside_server, between_servers=between_servers),
        )
    except ValueError as error:
        raise InputError(f"the server file makes no cluster: {error}") from None


def from_cluster(cluster: Cluster) -> ServerFile:
    """Return a cluster as a server file; memory, prices and links have no place in it.

    Raises:
        InputError: a name or a path is not one word, or a server's name does not start with "Server".
    """
    try:
        servers = tuple(
            TextServer(
                name=server.name,
                devices=tuple(
                    TextDevices(
                        device_type=group.type,
                        count=group.count,
                        profile=cluster.device_types[group.type].profile,
                    )
                    for group in server.devices
                ),
            )
            for server in cluster.servers
        )
    except ValueError as error:
        raise InputError(f"a server file cannot hold this cluster: {error}") from None
    return ServerFile(servers=servers)


def _parse_header(line: str, servers: Mapping[str, object]) -> str:
    words = line.split()
    if len(words) != 1:
        raise ValueError(f"found {line.rstrip()!r}, expected the server's name alone on its line")
    if words[0] in servers:
        raise ValueError(f"{words[0]} is there twice; each server needs a name of its own")
    return words[0]


def _parse_devices(line: str) -> TextDevices:
    words = line.split()
    if len(words) != 3:
        raise ValueError(
            f"found {line.strip()!r} ({len(words)} words), expected three: TYPE COUNT PROFILE"
        )
    device_type, count, profile = words
    if not re.fullmatch(r"\d+", count, re.ASCII) or int(count) < 1:
        raise ValueError(f"count of {device_type} is {count!r}, expected a whole number from 1")
    return TextDevices(device_type=device_type, count=int(count), profile=profile)
