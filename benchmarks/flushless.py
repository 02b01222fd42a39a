"""Time per update without flush (pipedream, pipedream-2bw) against 1f1b with flush, in one run on two ranks.

Run with: .venv/bin/python benchmarks/flushless.py
The rivals train the same generated stages of a transformer (8 blocks, width 128), update included, in turns
of --steps updates each. A turn starts and ends with an empty pipeline: it fills once without flush,
once per update with flush. Figures are of whole turns, fill and drain included; ratios are paired.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from against_torch import TASK, make_stages
from method.commands import start_ranks

from stagewright.allocation import keep_freed_memory
from stagewright.runtime.ranks.world import join_world
from stagewright.runtime.session import Session
from stagewright.runtime.training.data import TrainingData
from stagewright.runtime.training.settings import Settings

WINDOWS = (1, 2, 4, 8)
"""Micro-batches per update."""
RIVALS = ("1f1b", "pipedream", "pipedream-2bw")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of is not None:
        run_rank(args.rank_of, args.turns, args.steps)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_stages(folder)
        numbers = ("--turns", str(args.turns), "--steps", str(args.steps))
        start_ranks(2, __file__, "--rank-of", str(folder), *numbers)


def run_rank(folder: Path, num_turns: int, num_steps: int) -> None:
    """Time all rivals on this rank; rank 0 prints the table."""
    keep_freed_memory()
    torch.set_num_threads(1)
    world = join_world(int(os.environ["RANK"]), 2, torch.device("cpu"), 60.0)
    if world.rank == 0:
        print(
            "| micro-batches per update | schedule | ms/update (measured) | ratio to 1f1b, median |"
        )
        print("|--:|---|--:|--:|")
    for window in WINDOWS:
        sessions = {
            name: Session.start(
                folder / "stages", TASK, world, Settings(schedule=name, update_window=window)
            )
            for name in RIVALS
        }
        times: dict[str, list[float]] = {name: [] for name in RIVALS}
        for turn in range(num_turns + 1):
            for name, session in sessions.items():
                spent_ms = time_turn(session, turn, num_steps)
                if turn:
                    times[name].append(spent_ms / num_steps)
        if world.rank == 0:
            print_rows(window, times)
    dist.destroy_process_group()


def time_turn(session: Session, turn: int, num_steps: int) -> float:
    """Return the ms of some updates, of the slower rank."""
    data = TrainingData(session)
    first = turn * num_steps % (data.steps_per_epoch - num_steps)
    dist.barrier()
    started_s = time.perf_counter()
    session.train_steps(data.of_step, range(first, first + num_steps), num_steps)
    spent = torch.tensor([time.perf_counter() - started_s])
    dist.all_reduce(spent, op=dist.ReduceOp.MAX)
    return spent.item() * 1e3


def print_rows(window: int, times: dict[str, list[float]]) -> None:
    for name, own in times.items():
        ratio = statistics.median(a / b for a, b in zip(own, times["1f1b"], strict=True))
        print(f"| {window} | {name} | {statistics.median(own):.2f} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
