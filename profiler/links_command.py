"""stagewright links: measure what messages between all ranks cost; start it with torchrun."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist

from stagewright.document import InputError, demand_writable, write_atomically

from .links import Links, cluster_text, measure_links


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the links; return the exit status.

    Raises:
        InputError: it was not started with at least two ranks, or the file cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="stagewright links",
        description=__doc__,
        epilog="example: torchrun --nproc-per-node 2 -m stagewright.profiler.links_command -o links.toml",
    )
    parser.add_argument(
        "-o", "--output", type=Path, help="write the tables for a cluster file (TOML)"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    args = parser.parse_args(argv)
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise InputError(
            "one rank was started, expected at least two; start with torchrun --nproc-per-node 2 "
            "-m stagewright.profiler.links_command"
        )
    if args.output is not None:
        demand_writable(args.output)
    device = torch.device("cpu")
    if args.device == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    backend = "nccl" if args.device == "cuda" else "gloo"
    dist.init_process_group("cpu:gloo,cuda:nccl" if args.device == "cuda" else "gloo")
    links = measure_links(device, backend)
    dist.destroy_process_group()
    if links is not None:
        text = cluster_text(links)
        if args.output is not None:
            write_atomically(args.output, text.encode())
        print(json.dumps(msgspec.to_builtins(links)) if args.json else f"{text_of(links)}\n{text}")
    return 0


def text_of(links: Links) -> str:
    """Return all pairs as a table."""
    lines = [f"measured over {links.backend}:", "from  to   latency ms   bandwidth MB/s"]
    lines += [
        f"{p.first:4}  {p.second:2}  {p.latency_ms:11.4f}  {p.bandwidth_bytes_per_s / 1e6:15.1f}"
        for p in links.pairs
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    from stagewright.cli import run

    sys.exit(run("stagewright links", main, None))
