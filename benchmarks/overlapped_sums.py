"""Step time of two data-parallel replicas, gradients summed beside the last backward against after it.

Run with: .venv/bin/python benchmarks/overlapped_sums.py
Both rivals train the same generated stage of a transformer (8 blocks, width 128) on two ranks of this machine
in one run, step by step, first in turns; the ratio is the median of the paired ones. Measured. With --rate
1gbit (as root) the ranks are in two network namespaces joined by a link that the kernel limits so.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from against_torch import MICROBATCH_SIZE, TASK
from method.clusters import cluster_text
from method.commands import ROOT, one_thread, stagewright
from slow_network import ADDRESSES, PORT, SERVERS, two_networks

from stagewright.allocation import keep_freed_memory
from stagewright.runtime.ranks.world import join_world
from stagewright.runtime.session import Session
from stagewright.runtime.training.data import TrainingData
from stagewright.runtime.training.settings import Settings

MICROBATCHES = (2, 4, 8)
"""Per step; half of them on each rank."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rate", help="of the link between the ranks, for tc: 1gbit")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of is not None:
        run_rank(args.rank_of, args.steps)
        return
    with tempfile.TemporaryDirectory() as name:
        make_stages(Path(name))
        command = [sys.executable, __file__, "--rank-of", name, "--steps", str(args.steps)]
        if args.rate is None:
            start(command, "127.0.0.1", [((), "lo")] * 2)
            return
        with two_networks(args.rate):
            inside = [("ip", "netns", "exec", server) for server in SERVERS]
            start(command, ADDRESSES[0], list(zip(inside, ("sw0", "sw1"), strict=True)))


def start(
    command: Sequence[str], address: str, places: Sequence[tuple[Sequence[str], str]]
) -> None:
    """Run a rank at each place (what starts it there, its network device) and wait for all."""
    ranks = []
    for index, (inside, device) in enumerate(places):
        environment = one_thread() | {
            "RANK": str(index),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": address,
            "MASTER_PORT": str(PORT),
            "GLOO_SOCKET_IFNAME": device,
        }
        ranks.append(subprocess.Popen([*inside, *command], cwd=ROOT, env=environment))
    try:
        if any(rank.wait() for rank in ranks):
            sys.exit("a rank failed")
    finally:
        for rank in ranks:
            rank.kill()


def make_stages(folder: Path) -> None:
    """Profile, plan one stage on both ranks, and generate it for each number of micro-batches."""
    (folder / "cluster.toml").write_text(cluster_text({"here": {"cpu": 2}}))
    size = str(MICROBATCH_SIZE)
    profile = ["profile", TASK, "--device-type", "cpu", "-b", size, "--repeats", "5"]
    stagewright(*profile, "-o", str(folder / "cpu.json"))
    for count in MICROBATCHES:
        plan, batch = str(folder / f"plan{count}.json"), str(MICROBATCH_SIZE * count)
        one = ["--batch-size", batch, "--max-stages", "1"]
        stagewright("optimize", str(folder / "cluster.toml"), "-o", plan, *one)
        stagewright("generate", plan, "-o", str(folder / f"stages{count}"))


def run_rank(folder: Path, num_steps: int) -> None:
    """Time both rivals on this rank; rank 0 prints the table."""
    keep_freed_memory()
    torch.set_num_threads(1)
    world = join_world(int(os.environ["RANK"]), 2, torch.device("cpu"), 60.0)
    if world.rank == 0:
        print("| micro-batches | beside, ms/step | after, ms/step | ratio, median (measured) |")
        print("|--:|--:|--:|--:|")
    for count in MICROBATCHES:
        sessions = [
            Session.start(folder / f"stages{count}", TASK, world, Settings(overlap=overlap))
            for overlap in (True, False)
        ]
        times: list[list[float]] = [[], []]
        for step in range(num_steps + 2):
            turn = list(zip(sessions, times, strict=True))
            for session, own in turn[:: 1 if step % 2 else -1]:
                spent_ms = time_step(session, step)
                if step >= 2:
                    own.append(spent_ms)
        if world.rank == 0:
            ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
            beside, after = map(statistics.median, times)
            print(f"| {count} | {beside:.1f} | {after:.1f} | {ratio:.3f} |", flush=True)
    dist.destroy_process_group()


def time_step(session: Session, step: int) -> float:
    """Return the ms of one step of the slower rank."""
    data = TrainingData(session).of_step(step)
    dist.barrier()
    started_s = time.perf_counter()
    session.train_step(data, step)
    spent = torch.tensor([time.perf_counter() - started_s])
    dist.all_reduce(spent, op=dist.ReduceOp.MAX)
    return spent.item() * 1e3


if __name__ == "__main__":
    main()
