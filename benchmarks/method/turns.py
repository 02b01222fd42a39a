"""Rivals that run their steps in turn on the same ranks, so that noise meets all of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from stagewright.runtime.session import Session
from stagewright.runtime.training.batches import DataOrder, MicrobatchData
from stagewright.runtime.training.samples import read_samples

WARM_UP_STEPS = 4
"""Of each rival, not counted."""


def times_in_turn(
    rivals: Mapping[str, Callable[[int], None]],
    modules: Sequence[torch.nn.Module],
    num_steps: int,
    after_round: Callable[[int], None] | None = None,
) -> dict[str, list[float]]:
    """Return the ms of each step of each rival, of the slowest rank; gradients are dropped in between.

    In turn forward and backward, so that none always follows the same one.

    Args:
        rivals: run one step, by name.
        modules: whose gradients are dropped.
        num_steps: of each rival, those of the warm-up not counted.
        after_round: called after each step of all rivals, those of the warm-up too.
    """
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for step in range(WARM_UP_STEPS + num_steps):
        for name, run_step in list(rivals.items())[:: 1 if step % 2 else -1]:
            dist.barrier()
            started_s = time.perf_counter()
            run_step(step)
            spent = torch.tensor([time.perf_counter() - started_s])
            dist.all_reduce(spent, op=dist.ReduceOp.MAX)
            if step >= WARM_UP_STEPS:
                times[name].append(spent.item() * 1e3)
            for module in modules:
                module.zero_grad(set_to_none=True)
        if after_round is not None:
            after_round(step)
    return times


def data_of(session: Session, dataset: Any, order: DataOrder, step: int) -> MicrobatchData:
    """Return a step's micro-batches."""
    requests = [order.request(step, m) for m in range(session.plan.num_microbatches)]
    read, device = partial(read_samples, dataset), session.world.device
    return MicrobatchData(read, requests, session.plan.inputs, session.dtype, device)


def run_ours(session: Session, dataset: Any, order: DataOrder, step: int) -> None:
    """Run one step of a plan without its update."""
    session.compute_gradients(data_of(session, dataset, order, step), step)


class Untupled(torch.nn.Module):
    """A stage whose only output is not in a tuple, as torch's schedules want it."""

    def __init__(self, stage: torch.nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: Any = self.stage(x)
        return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]
