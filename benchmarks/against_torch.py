"""Step time of our executor against torch.distributed.pipelining on two ranks, in one run.

Run with: .venv/bin/python benchmarks/against_torch.py [--stages-per-rank 2]
Two stages, or four that are dealt to the ranks in turn. All run the same generated stage modules of a
transformer (8 blocks, width 128) on the same micro-batches, forward and backward without update, step by step
in turn; medians over steps, of the slower rank.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)

from stagewright.allocation import keep_freed_memory
from stagewright.runtime.ranks.world import join_world
from stagewright.runtime.session import Session
from stagewright.runtime.training.batches import DataOrder, MicrobatchData
from stagewright.runtime.training.settings import Settings
from stagewright.schedule import Action

ROOT = Path(__file__).resolve().parent.parent
TASK = "models/gpt.py:build_deep"
MICROBATCH_SIZE, NUM_MICROBATCHES = 2, 8
NUM_RANKS, NUM_BLOCKS = 2, 8
OURS = {1: ("1f1b", "gpipe", "zero-bubble"), 2: ("interleaved", "zero-bubble", "1f1b")}
"""By stages per rank."""
RIVALS = {
    1: (Schedule1F1B, ScheduleGPipe),
    2: (ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble),
}
CLUSTER = """\
format = "stagewright.cluster"
version = 1
[device_types.cpu]
memory_bytes = 8_000_000_000
profile = "cpu.json"
[[servers]]
name = "here"
devices = [{ type = "cpu", count = 2 }]
[links.inside_server]
bandwidth_bytes_per_s = 1.0e9
latency_ms = 0.3
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--stages-per-rank", type=int, choices=list(RIVALS), default=1)
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of is not None:
        run_rank(args.rank_of, args.steps, args.stages_per_rank)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_stages(folder, args.stages_per_rank)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = ["--nproc-per-node", "2", __file__, "--rank-of", str(folder)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        steps = ["--steps", str(args.steps), "--stages-per-rank", str(args.stages_per_rank)]
        subprocess.run([*launcher, *command, *steps], cwd=ROOT, env=environment, check=True)


def make_stages(folder: Path, stages_per_rank: int) -> None:
    """Profile, cut into equal numbers of blocks, and generate."""
    stagewright = [sys.executable, "-m", "stagewright.cli"]
    (folder / "cluster.toml").write_text(CLUSTER)
    size = str(MICROBATCH_SIZE)
    profile = ["profile", TASK, "--device-type", "cpu", "-b", size, "--repeats", "10"]
    count = NUM_RANKS * stages_per_rank
    cuts = ",".join(f"blocks.{NUM_BLOCKS * s // count}.norm1" for s in range(1, count))
    batch = ["--batch-size", str(MICROBATCH_SIZE * NUM_MICROBATCHES), "--cuts", cuts]
    if stages_per_rank > 1:
        batch += ["--schedule", "interleaved", "--stages-per-rank", str(stages_per_rank)]
    commands = [
        [*profile, "-o", str(folder / "cpu.json")],
        ["optimize", str(folder / "cluster.toml"), "-o", str(folder / "plan.json"), *batch],
        ["generate", str(folder / "plan.json"), "-o", str(folder / "stages")],
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for command in commands:
        done = subprocess.run(
            [*stagewright, *command], cwd=ROOT, env=environment, capture_output=True, check=False
        )
        if done.returncode:
            sys.exit(done.stderr.decode())


def run_rank(folder: Path, num_steps: int, stages_per_rank: int) -> None:
    """Time all rivals on this rank; rank 0 prints the table."""
    keep_freed_memory()
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    world = join_world(rank, NUM_RANKS, torch.device("cpu"), 60.0)
    sessions = {
        name: Session.start(folder / "stages", TASK, world, Settings(schedule=name))
        for name in OURS[stages_per_rank]
    }
    session = next(iter(sessions.values()))
    dataset = session.task.function("dataset")("train")
    order = DataOrder(len(dataset), MICROBATCH_SIZE, NUM_MICROBATCHES, 0)
    rivals: dict[str, Callable[[int], None]] = {}
    for name, own in sessions.items():
        rivals[f"ours, {name}"] = lambda step, own=own: run_ours(own, dataset, order, step)
    loss = session.task.function("loss")
    for schedule in RIVALS[stages_per_rank]:
        name = f"torch, {schedule.__name__}"
        rivals[name] = theirs(session.modules, rank, schedule, dataset, order, loss)
    times = {name: [] for name in rivals}
    for step in range(num_steps + 3):
        for name, run_step in rivals.items():
            dist.barrier()
            started_s = time.perf_counter()
            run_step(step % order.steps_per_epoch)
            spent = torch.tensor([time.perf_counter() - started_s])
            dist.all_reduce(spent, op=dist.ReduceOp.MAX)
            if step >= 3:
                times[name].append(spent.item() * 1e3)
            for module in session.modules:
                module.zero_grad(set_to_none=True)
    bubble_ms = compute_only_ms(session)
    if rank == 0:
        print_table(times)
        name, own_ms = next(iter(times.items()))
        ratio = statistics.median(own_ms) / bubble_ms
        print(f"{name}: {ratio:.3f} of computing alone with its bubble ({bubble_ms:.2f} ms, from")
        print("what the device spent in the median of each stage's actions, messages free)")
    dist.destroy_process_group()


def compute_only_ms(session: Session) -> float:
    """Return how long the session's schedule takes if messages take nothing; every rank calls this."""
    spent: dict[tuple[int, str], list[float]] = {}
    for step in session.measured:
        for item in step.actions:
            spent.setdefault((item.action.stage, item.action.kind), []).append(item.device_s)
    own = {key: statistics.median(values) * 1e3 for key, values in spent.items()}
    everyone: list[dict[tuple[int, str], float]] = [{}] * NUM_RANKS
    dist.all_gather_object(everyone, own)
    times = {key: value for each in everyone for key, value in each.items()}
    done: dict[Action, float] = {}
    pipeline = session.plan.pipeline(NUM_MICROBATCHES)
    rows = {rank: deque(row) for rank, row in session.rows.rows.items()}
    free = dict.fromkeys(rows, 0.0)
    while any(rows.values()):
        for rank, row in rows.items():
            while row:
                needed = [n if isinstance(n, tuple) else (n,) for n in pipeline.needs(row[0])]
                if not all(any(action in done for action in either) for either in needed):
                    break
                action = row.popleft()
                ready = (done[a] for either in needed for a in either if a in done)
                free[rank] = max(free[rank], *ready, 0.0) + times[action.stage, action.kind]
                done[action] = free[rank]
    return max(free.values())


def run_ours(session: Session, dataset: object, order: DataOrder, step: int) -> None:
    microbatches = [order.indices(0, step, m) for m in range(NUM_MICROBATCHES)]
    data = MicrobatchData(
        dataset, microbatches, session.plan.inputs, session.dtype, session.world.device, (0, step)
    )  # type: ignore[arg-type]
    session.compute_gradients(data, step)


class Untupled(torch.nn.Module):
    """A stage whose only output is not in a tuple."""

    def __init__(self, stage: torch.nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.stage(x)
        return output[0] if isinstance(output, tuple) else output


def theirs(
    modules: list[torch.nn.Module],
    rank: int,
    schedule: type,
    dataset: object,
    order: DataOrder,
    loss: object,
) -> Callable[[int], None]:
    """Return what runs one step of torch's schedule over the same stage modules."""
    tokens = torch.zeros(MICROBATCH_SIZE, 64, dtype=torch.long)
    hidden = torch.zeros(MICROBATCH_SIZE, 64, 128, requires_grad=True)
    scores = torch.zeros(MICROBATCH_SIZE, 64, 256, requires_grad=True)
    count = NUM_RANKS * len(modules)
    stages = []
    for index, module in zip(range(rank, count, NUM_RANKS), modules, strict=True):
        ends = (tokens if index == 0 else hidden,), (scores if index == count - 1 else hidden,)
        stages.append(PipelineStage(Untupled(module), index, count, torch.device("cpu"), *ends))
    pipeline = schedule(stages if len(stages) > 1 else stages[0], NUM_MICROBATCHES, loss_fn=loss)

    def run_step(step: int) -> None:
        indices = [i for m in range(NUM_MICROBATCHES) for i in order.indices(0, step, m)]
        items = [dataset[index] for index in indices]  # type: ignore[index]
        if rank == 0:
            pipeline.step(torch.stack([item[0] for item in items]))
        else:
            pipeline.step(target=torch.stack([item[1] for item in items]), losses=[])

    return run_step


def print_table(times: dict[str, list[float]]) -> None:
    bases = [name for name in times if name.startswith("torch")]
    heads = " | ".join(f"paired ratio to {name}" for name in bases)
    print(f"| rival | median ms/step (measured) | {heads} |")
    print("|---|--:" + "|--:" * len(bases) + "|")
    for name, own in times.items():
        ratios = [
            statistics.median(a / b for a, b in zip(own, times[base], strict=True))
            for base in bases
        ]
        row = " | ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"| {name} | {statistics.median(own):.2f} | {row} |")


if __name__ == "__main__":
    main()
