"""Step times of the sparse models on one fast and one or three slow devices, by turns in one run.

Run with: chrt -r 10 .venv/bin/python benchmarks/sparse_steps.py (needs `make minkowski`). The fast device is
this machine's CPU (one thread), the slow ones are the same CPU emulated 2.5 times slower. The exact plan, the
best one without replicas, a split of the layers in equal numbers, data parallelism in equal shares and a
plain loop in one process on the fast device take turns step by step: forward, backward and gradient sum,
without update, over the same generated clouds, made beforehand. Times are of the slowest rank, medians;
predictions are from profiles made in the same run.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from method.clusters import cluster_text
from method.commands import measure_links, stagewright, start_ranks
from method.turns import WARM_UP_STEPS, run_ours, times_in_turn
from unequal_devices import SLOWDOWN

from stagewright.allocation import keep_freed_memory
from stagewright.graph import LayerGraph
from stagewright.optimizer.borders import chain_of
from stagewright.runtime.ranks.world import join_world
from stagewright.runtime.session import Session
from stagewright.runtime.training.batches import DataOrder
from stagewright.runtime.training.settings import Settings

MODELS = {"vgg": "vgg:small", "resnet": "resnet", "unet": "unet"}
MICROBATCH_SIZE, NUM_MICROBATCHES = 8, {2: 8, 4: 12}
NAMES = {
    "exact": "exact plan",
    "straight": "exact plan without replicas",
    "even": "even split of the layers",
    "parallel": "data parallelism, equal shares",
}
ONE_PROCESS = "one process (fast)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--ranks", type=int, nargs="+", choices=[2, 4], default=[2, 4])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of is not None:
        run_rank(args.rank_of, task_of(args.models[0]), args.steps)
        return
    with tempfile.TemporaryDirectory() as name:
        links = measure_links(Path(name) / "links.toml")
        for model in args.models:
            folder = Path(name) / model
            folder.mkdir()
            profile(folder, task_of(model))
            for num_ranks in args.ranks:
                print(f"\n{model} on 1 fast and {num_ranks - 1} slow (emulated x{SLOWDOWN:g})")
                own = make_plans(folder, num_ranks, links)
                steps = ("--models", model, "--rank-of", str(own), "--steps", str(args.steps))
                start_ranks(num_ranks, __file__, *steps)


def task_of(model: str) -> str:
    return f"stagewright.models.minkowski.{MODELS[model]}"


def profile(folder: Path, task: str) -> None:
    """Profile both device types."""
    for device_type, emulated in (("fast", ()), ("slow", ("--emulate-slowdown", str(SLOWDOWN)))):
        output = ("-o", str(folder / f"{device_type}.json"), "--repeats", "12")
        options = ("--device-type", device_type, "-b", str(MICROBATCH_SIZE), *output, *emulated)
        stagewright("profile", task, *options)


def make_plans(folder: Path, num_ranks: int, links: str) -> Path:
    """Plan and generate all rivals for so many devices; return where they are."""
    own = folder / str(num_ranks)
    own.mkdir()
    cluster = folder / f"cluster{num_ranks}.toml"
    cluster.write_text(cluster_text({"here": {"fast": 1, "slow": num_ranks - 1}}, links))
    types = ["fast", *["slow"] * (num_ranks - 1)]
    layers = [layer.name for layer in chain_of(LayerGraph.load(folder / "fast.json"))]
    even = [layers[len(layers) * stage // num_ranks] for stage in range(1, num_ranks)]
    batch = ("--batch-size", str(MICROBATCH_SIZE * NUM_MICROBATCHES[num_ranks]))
    size = ("--microbatch-size", str(MICROBATCH_SIZE), "--ignore-update")
    rivals = {
        "exact": (),
        "straight": ("--straight",),
        "even": ("--cuts", ",".join(even), "--types", ",".join(types)),
        "parallel": ("--replicas", str(num_ranks), "--types", "+".join(types), "--equal-shares"),
    }
    for name, options in rivals.items():
        plan = str(own / f"{name}.json")
        stagewright("optimize", str(cluster), "-o", plan, *batch, *size, *options)
        stagewright("generate", plan, "-o", str(own / name))
    return own


class Made:
    """A dataset whose samples are made once."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._made: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        if index not in self._made:
            self._made[index] = self._dataset[index]
        return self._made[index]


def run_rank(folder: Path, task: str, num_steps: int) -> None:
    """Time all rivals on this rank; rank 0 prints the table."""
    keep_freed_memory()
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    world = join_world(rank, size, torch.device("cpu"), 60.0)
    sessions = {n: Session.start(folder / n, task, world, Settings()) for n in NAMES}
    session = sessions["exact"]
    dataset = Made(session.task.function("dataset")("train"))
    order = DataOrder(len(dataset), MICROBATCH_SIZE, NUM_MICROBATCHES[size], 0)
    for step in range(WARM_UP_STEPS + num_steps):
        for microbatch in range(NUM_MICROBATCHES[size]):
            for index in order.indices(0, step, microbatch):
                dataset[index]
    rivals: dict[str, Callable[[int], None]] = {
        NAMES[name]: partial(run_ours, own, dataset, order) for name, own in sessions.items()
    }
    model = session.task.build()
    alone = partial(run_alone, session, model, dataset, order)
    rivals[ONE_PROCESS] = alone if rank == 0 else lambda step: None
    modules = [model, *(own.modules[0] for own in sessions.values())]
    times = times_in_turn(rivals, modules, num_steps)
    if rank == 0:
        whole = LayerGraph.load(folder.parent / "fast.json").whole[0]
        predicted = {NAMES[n]: own.plan.predicted_step_ms for n, own in sessions.items()}
        step_ms = whole.forward_ms + whole.backward_ms
        predicted[ONE_PROCESS] = NUM_MICROBATCHES[size] * step_ms
        print_table(sessions, times, predicted)
    dist.destroy_process_group()


def run_alone(
    session: Session, model: torch.nn.Module, dataset: Made, order: DataOrder, step: int
) -> None:
    """Run one step of the original model in a plain loop."""
    loss_of = session.task.function("loss")
    for microbatch in range(session.plan.num_microbatches):
        items = [dataset[index] for index in order.indices(0, step, microbatch)]
        points = torch.stack([cloud for cloud, _ in items])
        target = torch.stack([torch.as_tensor(label) for _, label in items])
        (loss_of(model(points), target) / session.plan.num_microbatches).backward()


def print_table(
    sessions: Mapping[str, Session],
    times: Mapping[str, list[float]],
    predicted: Mapping[str, float],
) -> None:
    """Print the planned stages and one row for each rival: the exact plan first."""
    for name in ("exact", "straight"):
        print(f"{NAMES[name]}:")
        for stage in sessions[name].plan.stages:
            replicas = ", ".join(f"{r.device_type} (share {r.share})" for r in stage.replicas)
            print(f"  {stage.layers[0]} to {stage.layers[-1]} on {replicas}")
    print(
        "| rival | predicted ms/step | measured ms/step | measured / predicted | plan's speed-up |"
    )
    print("|---|--:|--:|--:|--:|")
    ours = times[NAMES["exact"]]
    for name, own in times.items():
        measured = statistics.median(own)
        speed_up = statistics.median(b / a for a, b in zip(ours, own, strict=True))
        print(
            f"| {name} | {predicted[name]:.1f} | {measured:.1f} | {measured / predicted[name]:.3f} | "
            f"{speed_up:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
