"""Links: what messages between ranks cost, measured; the figures that a cluster file takes.

Every pair of ranks in turn exchanges messages while all others wait: back and forth, both ways at once, and
summed (all-reduce); then all ranks together sum. Latency is half the round trip of the smallest message;
bandwidth is what the largest message's time beyond the latency gives. Source of the model: Hockney, "The
communication challenge for MPP", 1994: time = latency + bytes / bandwidth. How far it is off between is part
of the result.
"""

import itertools
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from stagewright.document import Record

SIZES = (1 << 10, 1 << 14, 1 << 18, 1 << 20, 1 << 22, 1 << 24)
"""Bytes of the messages."""
MOST_REPEATS, LEAST_REPEATS = 200, 5
MOST_GROUPED_RANKS = 16
"""Above, pairs do not sum: each pair needs a group of its own, which holds memory and connections."""
Curve = dict[str, float]
"""Milliseconds by message size in bytes: medians."""


class PairLink(Record):
    """The link between two ranks."""

    first: int
    second: int
    latency_ms: float
    bandwidth_bytes_per_s: float
    one_way_ms: Curve
    """Half a round trip."""
    both_ways_ms: Curve
    """Both ranks send at once, until both have received."""
    all_reduce_ms: Curve | None
    """The two sum a tensor of so many bytes; None: more than MOST_GROUPED_RANKS ranks."""
    worst_error: float
    """The largest error of latency + bytes / bandwidth, over the measured time."""

    @property
    def both_over_one(self) -> float:
        """The largest message's time both ways over one way: 1 on a full-duplex link, 2 on a shared one."""
        size = max(self.one_way_ms, key=int)
        return self.both_ways_ms[size] / self.one_way_ms[size]


class Links(Record):
    """All pairs, and all ranks together."""

    servers: tuple[str, ...]
    """By rank: the host's name."""
    backend: str
    pairs: tuple[PairLink, ...]
    all_reduce_ms: Curve
    """All ranks sum a tensor of so many bytes."""


@dataclass(frozen=True)
class Effort:
    """What is sent for how long."""

    sizes: Sequence[int] = SIZES
    seconds: float = 0.1
    """For each pair, size and kind of exchange, about so long."""


def measure_links(device: torch.device, backend: str, effort: Effort = Effort()) -> Links | None:
    """Measure all pairs; return them on rank 0, None elsewhere. Every rank calls this at the same time."""
    rank, size = dist.get_rank(), dist.get_world_size()
    hosts: list[str] = [""] * size
    dist.all_gather_object(hosts, socket.gethostname())
    pairs = []
    for first, second in itertools.combinations(range(size), 2):
        group = dist.new_group([first, second]) if size <= MOST_GROUPED_RANKS else None
        found = _pair_curves((first, second), group, device, effort)
        if rank == first:
            pairs.append(_fit(first, second, *found))
    together = _curve(range(size), device, effort, dist.all_reduce)
    everyone: list[Any] = [None] * size
    dist.all_gather_object(everyone, pairs)
    if rank != 0:
        return None
    return Links(
        servers=tuple(hosts),
        backend=backend,
        pairs=tuple(pair for own in everyone for pair in own),
        all_reduce_ms=together,
    )


def _pair_curves(
    pair: tuple[int, int], group: Any, device: torch.device, effort: Effort
) -> tuple[Curve, Curve, Curve | None]:
    """Return one way, both ways and summing; empty curves on the ranks that only wait."""
    rank = dist.get_rank()
    other = pair[1] if rank == pair[0] else pair[0]

    def round_trip(buffer: torch.Tensor) -> None:
        for sends in (rank == pair[0], rank != pair[0]):
            if sends:
                dist.send(buffer, other)
            else:
                dist.recv(buffer, other)

    def both_ways(buffer: torch.Tensor) -> None:
        received = torch.empty_like(buffer)
        exchange = [dist.P2POp(dist.isend, buffer, other), dist.P2POp(dist.irecv, received, other)]
        for work in dist.batch_isend_irecv(exchange):
            work.wait()

    one_way = {size: ms / 2 for size, ms in _curve(pair, device, effort, round_trip).items()}
    both = _curve(pair, device, effort, both_ways)
    if group is None:
        return one_way, both, None
    return one_way, both, _curve(pair, device, effort, lambda b: dist.all_reduce(b, group=group))


def _curve(
    ranks: Sequence[int],
    device: torch.device,
    effort: Effort,
    exchange: Callable[[torch.Tensor], object],
) -> Curve:
    """Return the median time of an exchange for each size, on all of some ranks; the others wait."""
    curve: Curve = {}
    for num_bytes in effort.sizes:
        dist.barrier()
        if dist.get_rank() in ranks:
            curve[str(num_bytes)] = _median_ms(ranks, device, num_bytes, effort.seconds, exchange)
    return curve


def _median_ms(
    ranks: Sequence[int],
    device: torch.device,
    num_bytes: int,
    seconds: float,
    exchange: Callable[[torch.Tensor], object],
) -> float:
    buffer = torch.zeros(num_bytes, dtype=torch.uint8, device=device)

    def timed_ms() -> float:
        started = time.perf_counter()
        exchange(buffer)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - started) * 1e3

    timed_ms()
    expected_ms = max(timed_ms(), 1e-3)
    repeats = torch.tensor(max(LEAST_REPEATS, min(MOST_REPEATS, int(seconds * 1e3 / expected_ms))))
    _tell(repeats, ranks)
    return statistics.median(timed_ms() for _ in range(int(repeats)))


def _tell(number: torch.Tensor, ranks: Sequence[int]) -> None:
    """Give all ranks the first one's number."""
    leader, *others = ranks
    if dist.get_rank() != leader:
        dist.recv(number, leader)
        return
    for other in others:
        dist.send(number, other)


def _fit(
    first: int, second: int, one_way: Curve, both_ways: Curve, all_reduce: Curve | None
) -> PairLink:
    curve = {int(num_bytes): ms for num_bytes, ms in one_way.items()}
    latency_ms, largest = curve[min(curve)], max(curve)
    beyond_s = max(curve[largest] - latency_ms, 1e-6) / 1e3
    bandwidth = largest / beyond_s
    errors = (abs(latency_ms + n / bandwidth * 1e3 - ms) / ms for n, ms in curve.items())
    return PairLink(
        first=first,
        second=second,
        latency_ms=latency_ms,
        bandwidth_bytes_per_s=bandwidth,
        one_way_ms=one_way,
        both_ways_ms=both_ways,
        all_reduce_ms=all_reduce,
        worst_error=max(errors),
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
