"""One fast and one or two slow devices: the exact plan against what is done without a planner, in one run.

Run with: .venv/bin/python benchmarks/unequal_devices.py
The fast device is this machine's CPU (one thread), the slow ones are the same CPU emulated 2.5 times slower:
a rank of a slow device sleeps after every computation, in our executor and in torch's schedule alike. A
transformer (8 blocks, width 128), forward, backward and gradient sum, without update. The rivals are run by
the same ranks, step by step in turn; times are of the slowest rank.

The ideal: all devices busy all the time, over as many devices that all work as fast as the slowest: the
sum of the speeds over their number times the least speed.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from method.clusters import cluster_text
from method.commands import measure_links, stagewright, start_ranks
from method.turns import Untupled, run_ours, times_in_turn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from stagewright.allocation import keep_freed_memory
from stagewright.plan import Plan
from stagewright.runtime.ranks.world import join_world
from stagewright.runtime.session import Session
from stagewright.runtime.training.batches import DataOrder
from stagewright.runtime.training.settings import Settings

TASK = "models/gpt.py:build_deep"
SLOWDOWN = 2.5
MICROBATCH_SIZE = 4
LENGTH, WIDTH, NUM_TOKENS = 64, 128, 256
EVEN_CUTS = {2: "blocks.4.norm1", 3: "blocks.3.norm1,blocks.6.norm1"}
NUM_MICROBATCHES = {2: 14, 3: 18}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of is not None:
        run_rank(args.rank_of, args.steps)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        profiles = [("fast", ()), ("slow", ("--emulate-slowdown", str(SLOWDOWN)))]
        for device_type, emulated in profiles:
            output = ("-o", str(folder / f"{device_type}.json"), "--repeats", "12")
            size = ("-b", str(MICROBATCH_SIZE))
            options = ("--device-type", device_type, *size, *output, *emulated)
            stagewright("profile", TASK, *options)
        links = measure_links(folder / "links.toml")
        for num_ranks in (2, 3):
            make_plans(folder, num_ranks, links)
        for num_ranks in (2, 3):
            own = (__file__, "--rank-of", str(folder / str(num_ranks)), "--steps", str(args.steps))
            start_ranks(num_ranks, *own)


def make_plans(folder: Path, num_ranks: int, links: str) -> None:
    """Plan and generate all rivals for so many devices."""
    own = folder / str(num_ranks)
    own.mkdir()
    cluster = folder / f"cluster{num_ranks}.toml"
    cluster.write_text(cluster_text({"here": {"fast": 1, "slow": num_ranks - 1}}, links))
    types = ["fast", *["slow"] * (num_ranks - 1)]
    batch = ("--batch-size", str(MICROBATCH_SIZE * NUM_MICROBATCHES[num_ranks]))
    size = ("--microbatch-size", str(MICROBATCH_SIZE), "--ignore-update")
    rivals = {
        "exact": (),
        "even": ("--cuts", EVEN_CUTS[num_ranks], "--types", ",".join(types)),
        "parallel": ("--replicas", str(num_ranks), "--types", "+".join(types), "--equal-shares"),
    }
    for name, options in rivals.items():
        plan = str(own / f"{name}.json")
        stagewright("optimize", str(cluster), "-o", plan, *batch, *size, *options)
        stagewright("generate", plan, "-o", str(own / name))


def run_rank(folder: Path, num_steps: int) -> None:
    """Time all rivals on this rank; rank 0 prints the table."""
    keep_freed_memory()
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    world = join_world(rank, size, torch.device("cpu"), 60.0)
    names = {
        "exact": "exact plan",
        "even": "even split of the layers",
        "parallel": "data parallelism, equal shares",
    }
    sessions = {n: Session.start(folder / n, TASK, world, Settings()) for n in names}
    dataset = sessions["even"].task.function("dataset")("train")
    order = DataOrder(len(dataset), MICROBATCH_SIZE, NUM_MICROBATCHES[size], 0)
    rivals: dict[str, Callable[[int], None]] = {
        names[name]: partial(run_ours, session, dataset, order)
        for name, session in sessions.items()
    }
    rivals["even split, torch's 1F1B"] = theirs(sessions["even"], dataset, order)
    times = times_in_turn(rivals, [session.modules[0] for session in sessions.values()], num_steps)
    if rank == 0:
        predicted = {names[n]: session.plan.predicted_step_ms for n, session in sessions.items()}
        print_table(times, predicted, sessions["exact"].plan)
    dist.destroy_process_group()


class EmulatedStage(PipelineStage):
    """A stage of torch's on a device that is emulated slower: each computation is followed by a sleep."""

    slowdown = 1.0

    def forward_one_chunk(self, *arguments: Any, **options: Any) -> Any:
        return self._slowed(super().forward_one_chunk, *arguments, **options)

    def backward_one_chunk(self, *arguments: Any, **options: Any) -> Any:
        return self._slowed(super().backward_one_chunk, *arguments, **options)

    def _slowed(self, compute: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        started_s = time.thread_time()
        result = compute(*arguments, **options)
        time.sleep((time.thread_time() - started_s) * (self.slowdown - 1))
        return result


def theirs(session: Session, dataset: Any, order: DataOrder) -> Callable[[int], None]:
    """Return what runs one step of torch's 1F1B over the stages of the even split."""
    rank, size = session.world.rank, session.world.size
    tokens = torch.zeros(MICROBATCH_SIZE, LENGTH, dtype=torch.long)
    hidden = torch.zeros(MICROBATCH_SIZE, LENGTH, WIDTH, requires_grad=True)
    scores = torch.zeros(MICROBATCH_SIZE, LENGTH, NUM_TOKENS, requires_grad=True)
    stage = EmulatedStage(
        Untupled(session.modules[0]),
        rank,
        size,
        session.world.device,
        (tokens if rank == 0 else hidden,),
        (scores if rank == size - 1 else hidden,),
    )
    stage.slowdown = SLOWDOWN if rank else 1.0
    loss = session.task.function(
        "loss"
    )  # without it on every rank, torch's schedule runs no backward
    num_microbatches = session.plan.num_microbatches
    pipeline = Schedule1F1B(stage, num_microbatches, loss_fn=loss)

    def run_step(step: int) -> None:
        indices = [i for m in range(num_microbatches) for i in order.indices(0, step, m)]
        if rank == 0:
            pipeline.step(torch.stack([dataset[index][0] for index in indices]))
        elif rank == size - 1:
            pipeline.step(target=torch.stack([dataset[i][1] for i in indices]), losses=[])
        else:
            pipeline.step()

    return run_step


def print_table(times: dict[str, list[float]], predicted: dict[str, float], plan: Plan) -> None:
    """Print one table: the exact plan first."""
    speeds = [1.0 if rank else SLOWDOWN for rank in range(plan.num_ranks)]
    ideal = sum(speeds) / (len(speeds) * min(speeds))
    ours = times["exact plan"]
    print(f"\n1 fast and {plan.num_ranks - 1} slow (emulated x{SLOWDOWN:g}), "
          f"{plan.num_microbatches} micro-batches of {plan.microbatch_size}; the plan:")  # fmt: skip
    for index, stage in enumerate(plan.stages):
        replicas = ", ".join(f"{r.device_type} (share {r.share})" for r in stage.replicas)
        print(f"  stage {index}: {stage.layers[0]} to {stage.layers[-1]} on {replicas}")
    print("| rival | predicted ms/step | measured ms/step | exact plan's speed-up, paired median |")
    print("|---|--:|--:|--:|")
    ratios = {}
    for name, own in times.items():
        ratios[name] = statistics.median(b / a for a, b in zip(ours, own, strict=True))
        shown = f"{predicted[name]:.1f}" if name in predicted else "-"
        print(f"| {name} | {shown} | {statistics.median(own):.1f} | {ratios[name]:.3f} |")
    best = min(ratio for name, ratio in ratios.items() if name != "exact plan")
    print(
        f"over the best of them {best:.3f}; ideal {ideal:.3f}: {best / ideal:.1%} of it (measured, emulated)"
    )


if __name__ == "__main__":
    main()
