"""Plans for SparsePipe's server files: with what such a file does not hold, it becomes a cluster file."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stagewright.cluster import Cluster, Link
from stagewright.document import InputError, read_text
from stagewright.server_file import HEADER, ServerFile, to_cluster

CLUSTER_SUFFIXES = (".toml", ".json")


@dataclass(frozen=True, kw_only=True)
class LinkFigures:
    """What the user says of the links."""

    bandwidth_bytes_per_s: float | None
    between_bandwidth_bytes_per_s: float | None
    """Between servers; None: as inside one."""
    latency_ms: float


def is_server_file(path: Path) -> bool:
    """Return whether a file is a server file: its first line that says something names a server."""
    if path.suffix in CLUSTER_SUFFIXES:
        return False
    lines = (line for line in read_text(path).split("\n") if line.strip())
    return next((line for line in lines if not line.startswith("#")), "").startswith(HEADER)


def write_cluster(
    server_path: Path, memory: Sequence[str], links: LinkFigures, plan_path: Path
) -> Path:
    """Write the cluster file of a server file beside the plan, and return its path.

    Args:
        memory: TYPE=BYTES of every device type.

    Raises:
        InputError: the file is wrong, or figures are missing.
    """
    servers = ServerFile.load(server_path)
    if links.bandwidth_bytes_per_s is None:
        raise InputError(
            f"{server_path}: a server file holds no bandwidth; give --bandwidth, bytes per second"
        )
    inside = Link(bandwidth_bytes_per_s=links.bandwidth_bytes_per_s, latency_ms=links.latency_ms)
    between = links.between_bandwidth_bytes_per_s or links.bandwidth_bytes_per_s
    try:
        cluster = to_cluster(
            servers,
            memory_bytes=dict(map(_memory_of, memory)),
            inside_server=inside,
            between_servers=Link(bandwidth_bytes_per_s=between, latency_ms=links.latency_ms)
            if len(servers.servers) > 1
            else None,
        )
    except InputError as error:
        raise InputError(f"{server_path}: {error} (--memory TYPE=BYTES for each type)") from None
    path = plan_path.with_suffix(".cluster.json")
    _with_profiles_from(cluster, server_path, path).save(path)
    return path


def _memory_of(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    try:
        num_bytes = int(float(number))
    except (ValueError, OverflowError):
        num_bytes = 0
    if not name or num_bytes < 1:
        raise InputError(f"--memory is {text!r}, expected TYPE=BYTES, such as fast=16e9")
    return name, num_bytes


def _with_profiles_from(cluster: Cluster, server_path: Path, path: Path) -> Cluster:
    """Return a cluster whose profiles are relative to its own file, no longer to the server file."""
    folder = path.resolve().parent
    types = {
        name: device.replace(
            profile=os.path.relpath((server_path.parent / device.profile).resolve(), folder)
        )
        for name, device in cluster.device_types.items()
    }
    return cluster.replace(device_types=types)
