"""Prefetch: a step whose samples are read by the rank against one whose samples are read ahead.

Run with: python benchmarks/prefetch.py [--turns 4]. One rank trains models/digits_cnn.py; an item of its
dataset takes the time that the table says (slept, as a disk or a network would take it). Trainings with 0, 1
and 2 processes that read take turns; losses must be the same bit for bit. Prints medians over all steps.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from method.clusters import cluster_text
from method.commands import stagewright

from stagewright.allocation import keep_freed_memory
from stagewright.models import digits_cnn
from stagewright.runtime.ranks.world import World
from stagewright.runtime.session import Session
from stagewright.runtime.training.settings import Settings
from stagewright.runtime.training.trainer import TrainingOptions, train

ITEM_MS = (0, 1, 4)
WORKERS = (0, 1, 2)
NUM_STEPS, WARM_UP_STEPS = 14, 2
build, loss, example_input = digits_cnn.build, digits_cnn.loss, digits_cnn.example_input


class SlowItems:
    """A dataset whose items take time."""

    def __init__(self, items: Any, item_ms: int) -> None:
        self._items, self._item_ms = items, item_ms

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        time.sleep(self._item_ms / 1e3)
        return self._items[index]


def dataset(split: str) -> SlowItems:
    """Make this file a task; how long an item takes is in the environment."""
    return SlowItems(digits_cnn.dataset(split), int(os.environ.get("ITEM_MS", "0")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=4)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    print("| an item takes | by the rank, ms | 1 process | 2 processes |\n|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_stages(folder)
        for item_ms in ITEM_MS:
            os.environ["ITEM_MS"] = str(item_ms)
            steps_ms: dict[int, list[float]] = defaultdict(list)
            losses = []
            for _ in range(args.turns):
                for workers in WORKERS:
                    found, times = run(folder, workers)
                    steps_ms[workers] += times
                    losses.append(found)
            assert all(found == losses[0] for found in losses)
            here, *ahead = (statistics.median(steps_ms[workers]) for workers in WORKERS)
            cells = [f"{step_ms:.1f} ({step_ms / here:.2f})" for step_ms in ahead]
            print(f"| {item_ms} ms | {here:.1f} | {' | '.join(cells)} |", flush=True)


def run(folder: Path, workers: int) -> tuple[list[float], list[float]]:
    """Train some steps; return their losses and the ms of those after the warm-up."""
    world = World(0, 1, torch.device("cpu"))
    session = Session.start(folder / "stages", __file__, world, Settings())
    options = TrainingOptions(epochs=4, max_steps=NUM_STEPS, evaluate=False, prefetch=workers)
    history = train(session, options, progress=False)
    return history.losses, [s.step_s * 1e3 for s in list(session.measured)[WARM_UP_STEPS:]]


def make_stages(folder: Path) -> None:
    """Profile, plan for one device, and generate."""
    (folder / "cluster.toml").write_text(cluster_text({"here": {"cpu": 1}}))
    profile = ("profile", __file__, "--device-type", "cpu", "-b", "16", "--repeats", "5")
    stagewright(*profile, "-o", str(folder / "cpu.json"))
    plan = str(folder / "plan.json")
    stagewright("optimize", str(folder / "cluster.toml"), "-o", plan, "--batch-size", "64")
    stagewright("generate", plan, "-o", str(folder / "stages"))


if __name__ == "__main__":
    main()
