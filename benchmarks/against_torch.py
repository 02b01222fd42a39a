"""Step time of our executor against torch.distributed.pipelining, two stages on two ranks, in one run.

Run with: .venv/bin/python benchmarks/against_torch.py
Both run the same generated stage modules of a transformer (8 blocks, width 128) on the same micro-batches,
forward and backward without update, step by step in turn; medians over steps, of the slower rank.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from stagewright.allocation import keep_freed_memory
from stagewright.runtime.batches import DataOrder, MicrobatchData
from stagewright.runtime.session import Session, Settings
from stagewright.runtime.world import join_world

ROOT = Path(__file__).resolve().parent.parent
TASK = "models/gpt.py:build_deep"
MICROBATCH_SIZE, NUM_MICROBATCHES = 2, 8
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
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of is not None:
        run_rank(args.rank_of, args.steps)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_stages(folder)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = ["--nproc-per-node", "2", __file__, "--rank-of", str(folder)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        steps = ["--steps", str(args.steps)]
        subprocess.run([*launcher, *command, *steps], cwd=ROOT, env=environment, check=True)


def make_stages(folder: Path) -> None:
    """Profile, cut in the middle, and generate."""
    stagewright = [sys.executable, "-m", "stagewright.cli"]
    (folder / "cluster.toml").write_text(CLUSTER)
    size = str(MICROBATCH_SIZE)
    profile = ["profile", TASK, "--device-type", "cpu", "-b", size, "--repeats", "10"]
    batch = ["--batch-size", str(MICROBATCH_SIZE * NUM_MICROBATCHES), "--cuts", "blocks.4.norm1"]
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


def run_rank(folder: Path, num_steps: int) -> None:
    """Time all rivals on this rank; rank 0 prints the table."""
    keep_freed_memory()
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    world = join_world(rank, 2, torch.device("cpu"), 60.0)
    sessions = {
        name: Session.start(folder / "stages", TASK, world, Settings(schedule=name))
        for name in ("1f1b", "gpipe", "zero-bubble")
    }
    session = sessions["1f1b"]
    dataset = session.task.function("dataset")("train")
    order = DataOrder(len(dataset), MICROBATCH_SIZE, NUM_MICROBATCHES, 0)
    rivals: dict[str, Callable[[int], None]] = {}
    for name, own in sessions.items():
        rivals[f"ours, {name}"] = lambda step, own=own: run_ours(own, dataset, order, step)
    loss = session.task.function("loss")
    for name, schedule in (("1f1b", Schedule1F1B), ("gpipe", ScheduleGPipe)):
        module = session.modules[0]
        rivals[f"torch, {name}"] = theirs(module, rank, schedule, dataset, order, loss)
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
            for parameter in session.modules[0].parameters():
                parameter.grad = None
    if rank == 0:
        print_table(times)
    dist.destroy_process_group()


def run_ours(session: Session, dataset: object, order: DataOrder, step: int) -> None:
    microbatches = [order.indices(0, step, m) for m in range(NUM_MICROBATCHES)]
    data = MicrobatchData(
        dataset, microbatches, session.plan.inputs, session.dtype, session.world.device, (0, step)
    )  # type: ignore[arg-type]
    session.compute_gradients(data, step)
    for module in session.modules:
        for parameter in module.parameters():
            parameter.grad = None


class Untupled(torch.nn.Module):
    """A stage whose only output is not in a tuple."""

    def __init__(self, stage: torch.nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.stage(x)
        return output[0] if isinstance(output, tuple) else output


def theirs(
    module: torch.nn.Module,
    rank: int,
    schedule: type,
    dataset: object,
    order: DataOrder,
    loss: object,
) -> Callable[[int], None]:
    """Return what runs one step of torch's schedule over the same stage module."""
    tokens = torch.zeros(MICROBATCH_SIZE, 64, dtype=torch.long)
    hidden = torch.zeros(MICROBATCH_SIZE, 64, 128, requires_grad=True)
    scores = torch.zeros(MICROBATCH_SIZE, 64, 256, requires_grad=True)
    first, last = ((tokens, hidden), (hidden, scores))
    stage_input, stage_output = first if rank == 0 else last
    stage = PipelineStage(
        Untupled(module), rank, 2, torch.device("cpu"), (stage_input,), (stage_output,)
    )
    pipeline = schedule(stage, NUM_MICROBATCHES, loss_fn=loss)

    def run_step(step: int) -> None:
        indices = [i for m in range(NUM_MICROBATCHES) for i in order.indices(0, step, m)]
        items = [dataset[index] for index in indices]  # type: ignore[index]
        if rank == 0:
            pipeline.step(torch.stack([item[0] for item in items]))
        else:
            pipeline.step(target=torch.stack([item[1] for item in items]), losses=[])

    return run_step


def print_table(times: dict[str, list[float]]) -> None:
    print("| rival | median ms/step (measured) | paired ratio to torch's 1f1b, median |")
    print("|---|--:|--:|")
    base = times["torch, 1f1b"]
    for name, own in times.items():
        ratio = statistics.median(a / b for a, b in zip(own, base, strict=True))
        print(f"| {name} | {statistics.median(own):.2f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
