"""Step time of our executor against torch.distributed.pipelining on two ranks, in one run.

Run with: .venv/bin/python benchmarks/against_torch.py [--stages-per-rank 2]
Two stages, or four that are dealt to the ranks in turn. All run the same generated stage modules of a
transformer (8 blocks, width 128) on the same micro-batches, forward and backward without update, step by step
in turn; medians over rounds, of the slower rank. In every round both ranks also compute their actions without
any message at the same time: what the step would take if messages and waits cost nothing.
"""

import argparse
import os
import statistics
import tempfile
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from method.clusters import cluster_text
from method.commands import stagewright, start_ranks
from method.turns import WARM_UP_STEPS, Untupled, data_of, run_ours, times_in_turn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)

from stagewright.allocation import keep_freed_memory
from stagewright.program import Message
from stagewright.runtime.execution.executor import Executor
from stagewright.runtime.execution.randomness import LayerSeeds
from stagewright.runtime.execution.rank_program import rank_program
from stagewright.runtime.messages.values import Payload, planned_layout
from stagewright.runtime.ranks.world import join_world
from stagewright.runtime.session import Session
from stagewright.runtime.training.batches import DataOrder, MicrobatchData
from stagewright.runtime.training.settings import Settings
from stagewright.schedule import Action, Edge
from stagewright.value import tensors_of

TASK = "models/gpt.py:build_deep"
MICROBATCH_SIZE, NUM_MICROBATCHES = 2, 8
NUM_RANKS, NUM_BLOCKS = 2, 8
OURS = {1: ("1f1b", "gpipe", "zero-bubble"), 2: ("interleaved", "zero-bubble", "1f1b")}
"""By stages per rank."""
RIVALS = {
    1: (Schedule1F1B, ScheduleGPipe),
    2: (ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100, help="rounds in which all have a step")
    parser.add_argument("--stages-per-rank", type=int, choices=list(RIVALS), default=1)
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of is not None:
        run_rank(args.rank_of, args.steps, args.stages_per_rank)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_stages(folder, args.stages_per_rank)
        steps = ("--steps", str(args.steps), "--stages-per-rank", str(args.stages_per_rank))
        start_ranks(NUM_RANKS, __file__, "--rank-of", str(folder), *steps)


def make_stages(folder: Path, stages_per_rank: int = 1) -> None:
    """Profile, cut into equal numbers of blocks, and generate."""
    (folder / "cluster.toml").write_text(cluster_text({"here": {"cpu": NUM_RANKS}}))
    size = str(MICROBATCH_SIZE)
    profile = ["profile", TASK, "--device-type", "cpu", "-b", size, "--repeats", "10"]
    count = NUM_RANKS * stages_per_rank
    cuts = ",".join(f"blocks.{NUM_BLOCKS * s // count}.norm1" for s in range(1, count))
    batch = ["--batch-size", str(MICROBATCH_SIZE * NUM_MICROBATCHES), "--cuts", cuts]
    if stages_per_rank > 1:
        batch += ["--schedule", "interleaved", "--stages-per-rank", str(stages_per_rank)]
    stagewright(*profile, "-o", str(folder / "cpu.json"))
    plan = str(folder / "plan.json")
    stagewright("optimize", str(folder / "cluster.toml"), "-o", plan, *batch)
    stagewright("generate", plan, "-o", str(folder / "stages"))


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
        rivals[f"ours, {name}"] = partial(run_ours, own, dataset, order)
    loss = session.task.function("loss")
    for schedule in RIVALS[stages_per_rank]:
        name = f"torch, {schedule.__name__}"
        rivals[name] = theirs(session.modules, rank, schedule, dataset, order, loss)
    alone = Alone(session, loss)
    bubbles_ms = []

    def run_alone(step: int) -> None:
        bubbles_ms.append(alone.step_ms(data_of(session, dataset, order, step), step))

    times = times_in_turn(rivals, session.modules, num_steps, run_alone)
    if rank == 0:
        print_table(times, bubbles_ms[WARM_UP_STEPS:])
    dist.destroy_process_group()


class NoMessages:
    """In place of an Exchange: what a rank receives is there, and what it sends goes nowhere."""

    def __init__(self, session: Session) -> None:
        self.traffic = session.executor.traffic
        self._payloads: dict[tuple[Edge, bool], Payload] = {}
        for border in session.plan.borders:
            specs = [spec for value in border.values for spec in tensors_of(value.spec)]
            edge = Edge(border.source, border.target, border.carries_gradient)
            for forward in (True, False):
                sent = [s for s in specs if forward or s.requires_grad]
                layout = planned_layout(sent, MICROBATCH_SIZE, session.precision)
                tensors = [torch.randn(p.shape).to(p.dtype) for p in layout]
                self._payloads[edge, forward] = Payload(tensors, [p.with_gradient for p in layout])

    def post(self, *_: object) -> None:
        pass

    send = post

    def receive(self, message: Message, *_: object) -> Payload:
        return self._payloads[message.edge, message.forward].detached()

    def drain(self) -> None:
        pass


class Alone:
    """The same schedule without messages: every rank computes its row from beginning to end at the same time.

    So the ranks share memory bandwidth and caches as they do in a step. The bubble is put in afterwards: the
    measured times are played as the schedule orders them, messages taking no time.
    """

    def __init__(self, session: Session, loss: Callable[..., torch.Tensor]) -> None:
        self._session = session
        self._loss = loss
        seeds, device = LayerSeeds(0, NUM_MICROBATCHES), torch.device("cpu")
        self._executor = Executor(session.executor.stages, NoMessages(session), seeds, device)  # type: ignore[arg-type]
        self._pipeline = session.plan.pipeline(NUM_MICROBATCHES)
        self._program = rank_program(self._pipeline, session.rows, session.world.rank)

    def step_ms(self, data: MicrobatchData, step: int) -> float:
        """Return how long a step takes if messages take nothing; every rank calls this."""

        def finish(output: torch.Tensor, *, target: torch.Tensor, unit: object) -> torch.Tensor:
            return self._loss(output, target) / NUM_MICROBATCHES

        dist.barrier()
        measured = self._executor.run(self._program, data, step, finish)
        for module in self._session.modules:
            module.zero_grad(set_to_none=True)
        own = {item.action: (item.end_s - item.start_s) * 1e3 for item in measured}
        everyone: list[dict[Action, float]] = [{}] * NUM_RANKS
        dist.all_gather_object(everyone, own)
        times = {action: spent for each in everyone for action, spent in each.items()}
        done: dict[Action, float] = {}
        rows = {rank: deque(row) for rank, row in self._session.rows.rows.items()}
        free = dict.fromkeys(rows, 0.0)
        while any(rows.values()):
            for rank, row in rows.items():
                while row:
                    needs = self._pipeline.needs(row[0])
                    needed = [need if isinstance(need, tuple) else (need,) for need in needs]
                    if not all(any(action in done for action in either) for either in needed):
                        break
                    action = row.popleft()
                    ready = (done[a] for either in needed for a in either if a in done)
                    free[rank] = max(free[rank], *ready, 0.0) + times[action]
                    done[action] = free[rank]
        return max(free.values())


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
        requests = [order.request(step, m) for m in range(NUM_MICROBATCHES)]
        indices = [i for request in requests for i in request.indices]
        items = [dataset[index] for index in indices]  # type: ignore[index]
        if rank == 0:
            pipeline.step(torch.stack([item[0] for item in items]))
        else:
            pipeline.step(target=torch.stack([item[1] for item in items]), losses=[])

    return run_step


def print_table(times: dict[str, list[float]], bubbles_ms: list[float]) -> None:
    def paired(own: list[float], other: list[float]) -> str:
        return f"{statistics.median(a / b for a, b in zip(own, other, strict=True)):.3f}"

    bases = {name: own for name, own in times.items() if name.startswith("torch")}
    bases["computing alone with its bubble"] = bubbles_ms
    heads = " | ".join(f"paired ratio to {name}" for name in bases)
    print(f"| rival | median ms/step (measured) | {heads} |")
    print("|---|--:" + "|--:" * len(bases) + "|")
    for name, own in (times | {"computing alone with its bubble": bubbles_ms}).items():
        row = " | ".join(paired(own, base) for base in bases.values())
        print(f"| {name} | {statistics.median(own):.2f} | {row} |")
    print(
        "computing alone: the actions of the first row's schedule, measured on both ranks at the same"
    )
    print("time in the same rounds, without messages; played in their order")


if __name__ == "__main__":
    main()
