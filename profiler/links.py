"""Links: what a message between two ranks costs, measured; the figures that a cluster file takes.

Every pair of ranks in turn sends messages back and forth while all others wait. Latency is half the round
trip of a small message; bandwidth is what a large message's time beyond the latency gives. Source of the
model: Hockney, "The communication challenge for MPP", 1994: time = latency + bytes / bandwidth.
"""

import itertools
import socket
import statistics
import time
from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist

from stagewright.document import Record

SIZES = (1 << 10, 1 << 14, 1 << 18, 1 << 20, 1 << 22, 1 << 24)
"""Bytes of the messages."""
MEASURED_S = 0.2
"""For every pair and size, about so long."""
MOST_REPEATS, LEAST_REPEATS = 200, 5


class PairLink(Record):
    """The link between two ranks."""

    first: int
    second: int
    latency_ms: float
    bandwidth_bytes_per_s: float
    one_way_ms: dict[str, float]
    """By message size in bytes: the median of half a round trip."""


class Links(Record):
    """All pairs, and the slowest of each level."""

    servers: tuple[str, ...]
    """By rank: the host's name."""
    backend: str
    pairs: tuple[PairLink, ...]


def measure_links(device: torch.device, backend: str) -> Links | None:
    """Measure all pairs; return them on rank 0, None elsewhere. Every rank calls this at the same time."""
    rank, size = dist.get_rank(), dist.get_world_size()
    hosts: list[str] = [""] * size
    dist.all_gather_object(hosts, socket.gethostname())
    pairs = []
    for first, second in itertools.combinations(range(size), 2):
        curve = {}
        for num_bytes in SIZES:
            dist.barrier()
            if rank in (first, second):
                other = second if rank == first else first
                curve[num_bytes] = _one_way_ms(num_bytes, other, rank == first, device)
        if rank == first:
            pairs.append(_fit(first, second, curve))
    everyone: list[Any] = [None] * size
    dist.all_gather_object(everyone, pairs)
    if rank != 0:
        return None
    return Links(
        servers=tuple(hosts),
        backend=backend,
        pairs=tuple(pair for own in everyone for pair in own),
    )


def _one_way_ms(num_bytes: int, other: int, starts: bool, device: torch.device) -> float:
    """Return the median of half a round trip."""
    buffer = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    _round_trip(buffer, other, starts)
    started = time.perf_counter()
    _round_trip(buffer, other, starts)
    spent_s = max(time.perf_counter() - started, 1e-6)
    repeats = torch.tensor(max(LEAST_REPEATS, min(MOST_REPEATS, int(MEASURED_S / spent_s))))
    if starts:
        dist.send(repeats, other)
    else:
        dist.recv(repeats, other)
    times = []
    for _ in range(int(repeats)):
        started = time.perf_counter()
        _round_trip(buffer, other, starts)
        times.append((time.perf_counter() - started) / 2 * 1e3)
    return statistics.median(times)


def _round_trip(buffer: torch.Tensor, other: int, starts: bool) -> None:
    if starts:
        dist.send(buffer, other)
        dist.recv(buffer, other)
    else:
        dist.recv(buffer, other)
        dist.send(buffer, other)
    if buffer.device.type == "cuda":
        torch.cuda.synchronize(buffer.device)


def _fit(first: int, second: int, curve: dict[int, float]) -> PairLink:
    latency_ms = curve[SIZES[0]]
    largest = SIZES[-1]
    beyond_s = max(curve[largest] - latency_ms, 1e-6) / 1e3
    return PairLink(
        first=first,
        second=second,
        latency_ms=latency_ms,
        bandwidth_bytes_per_s=largest / beyond_s,
        one_way_ms={str(num_bytes): ms for num_bytes, ms in curve.items()},
    )


def cluster_text(links: Links) -> str:
    """Return the links as a cluster file takes them: the slowest pair of each level and of two servers."""
    by_servers: dict[tuple[str, str], list[PairLink]] = defaultdict(list)
    for pair in links.pairs:
        ends = sorted((links.servers[pair.first], links.servers[pair.second]))
        by_servers[ends[0], ends[1]].append(pair)
    inside = [p for (a, b), own in by_servers.items() if a == b for p in own]
    between = [p for (a, b), own in by_servers.items() if a != b for p in own]
    lines = [
        f"# measured between {len(links.servers)} ranks over {links.backend}; the slowest pair counts"
    ]
    for name, pairs in (("inside_server", inside), ("between_servers", between)):
        if pairs:
            lines += ["", f"[links.{name}]", *_figures(pairs)]
    if len(set(links.servers)) > 2:
        for (first, second), pairs in sorted(by_servers.items()):
            names = f'servers = ["{first}", "{second}"]'
            lines += ["", "[[links.matrix]]", names, *_figures(pairs)]
    return "\n".join(lines) + "\n"


def _figures(pairs: list[PairLink]) -> list[str]:
    return [
        f"bandwidth_bytes_per_s = {min(p.bandwidth_bytes_per_s for p in pairs):.4g}",
        f"latency_ms = {max(p.latency_ms for p in pairs):.4g}",
    ]
