"""stagewright links: measure what messages between all ranks cost; start it with torchrun."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist

from stagewright.document import InputError, demand_writable, write_atomically
from stagewright.lost_peer import says_lost_peer

from .links import SIZES, Effort, Links, cluster_text, measure_links
from .links_picture import write_picture
from .plot import demand_plot
from .tracing.symbolic import first_line

TIMEOUT = timedelta(seconds=120)
"""For any one exchange; a rank that has ended is noticed at once."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="stagewright links",
        description=__doc__,
        epilog="example: torchrun --nproc-per-node 2 -m stagewright.profiler.links_command -o links.toml",
    )
    made.add_argument(
        "-o", "--output", type=Path, help="write the tables for a cluster file (TOML)"
    )
    made.add_argument(
        "--picture", type=Path, help="heat maps of all pairs and curves (.svg, .png, .pdf)"
    )
    made.add_argument(
        "--sizes", type=int, nargs="+", default=SIZES, help="bytes of the messages, two or more"
    )
    made.add_argument(
        "--seconds", type=float, default=Effort.seconds,
        help="for each pair, size and kind of exchange (one way, both ways, all-reduce)",
    )  # fmt: skip
    made.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    made.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the links; return the exit status.

    Raises:
        InputError: it was not started with at least two ranks, one of them ends, or a file cannot be
            written.
    """
    args = parser().parse_args(argv)
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise InputError(
            "one rank was started, expected at least two; start with torchrun --nproc-per-node 2 "
            "-m stagewright.profiler.links_command"
        )
    effort = Effort(sizes=tuple(sorted(set(args.sizes))), seconds=args.seconds)
    _check(effort, args.output, args.picture)
    device = torch.device("cpu")
    if args.device == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if (device.index or 0) >= torch.cuda.device_count():
            raise InputError(
                f"--device is cuda, but this server has {torch.cuda.device_count()} CUDA devices for its "
                f"process {device.index}; start as many processes as it has, or give --device cpu"
            )
        torch.cuda.set_device(device)
    backend = "nccl" if args.device == "cuda" else "gloo"
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if args.device == "cuda" else "gloo", timeout=TIMEOUT
        )
        links = measure_links(device, backend, effort)
        dist.destroy_process_group()
    except RuntimeError as error:
        if not says_lost_peer(str(error), is_of_backend=isinstance(error, dist.DistError)):
            raise
        raise InputError(
            f"rank {os.environ.get('RANK')}: a rank does not answer any more: {first_line(error)}; "
            "see which one has ended, and whether all reach MASTER_ADDR"
        ) from error
    if links is None:
        return 0
    text = cluster_text(links)
    files = []
    if args.output is not None:
        write_atomically(args.output, text.encode())
        files.append(args.output)
    if args.picture is not None:
        files.append(write_picture(args.picture, links))
    if args.json:
        print(json.dumps(msgspec.to_builtins(links) | {"files": [str(path) for path in files]}))
    else:
        print(f"{text_of(links)}\n{text}")
    return 0


def _check(effort: Effort, *paths: Path | None) -> None:
    """Raise InputError if the sizes are too few or too small, or a file cannot be written."""
    if len(effort.sizes) < 2 or effort.sizes[0] < 1:
        raise InputError(f"--sizes is {list(effort.sizes)}, expected two or more numbers from 1")
    if not effort.seconds > 0:
        raise InputError(f"--seconds is {effort.seconds}, expected a number above 0")
    output, picture = paths
    if picture is not None:
        demand_plot(picture)
    for path in (output, picture):
        if path is not None:
            demand_writable(path)


def text_of(links: Links) -> str:
    """Return all pairs as a table, and what summing over all ranks takes."""
    lines = [
        f"measured over {links.backend}; both/one: the largest message's time both ways at once over one way",
        "from  to   latency ms   bandwidth MB/s   both/one   worst error of latency + bytes / bandwidth",
    ]
    lines += [
        f"{p.first:4}  {p.second:2}  {p.latency_ms:11.4f}  {p.bandwidth_bytes_per_s / 1e6:15.1f}"
        f"  {p.both_over_one:9.2f}   {p.worst_error:.0%}"
        for p in links.pairs
    ]
    lines.append(f"all-reduce over {len(links.servers)} ranks, ms by bytes: " + ", ".join(
        f"{int(size):,}: {ms:.3f}" for size, ms in links.all_reduce_ms.items()
    ))  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    from stagewright.cli import run

    sys.exit(run("stagewright links", main, None))
