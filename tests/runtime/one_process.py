"""What ranks are compared with: a plain loop over the original model in one process."""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import torch

from stagewright.runtime.training.batches import DataOrder
from stagewright.task import load_task


def sgd_with_momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def one_process(
    task_name: str,
    microbatch_size: int,
    num_microbatches: int,
    dtype: torch.dtype,
    num_steps: int = 1,
    optimizer_of: Callable[[Any], torch.optim.Optimizer] = sgd_with_momentum,
    adder_of: Callable[[str, int], int] = lambda name, microbatch: 0,
) -> tuple[list[float], torch.nn.Module]:
    """Train the original model in a plain loop; the last step stops before the update.

    adder_of: who adds up a parameter's gradient of a micro-batch first; what all have is added up then.
    """
    task = load_task(task_name)
    torch.manual_seed(0)
    model = task.build().to(dtype)
    loss_of, dataset = task.function("loss"), task.function("dataset")("train")
    order = DataOrder(len(dataset), microbatch_size, num_microbatches, seed=0)
    optimizer = optimizer_of(model.parameters())
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    losses = []
    for step in range(num_steps):
        if step:
            optimizer.step()
            optimizer.zero_grad()
        total = 0.0
        sums: dict[str, dict[int, torch.Tensor]] = {name: {} for name in trained}
        for microbatch in range(num_microbatches):
            items = [dataset[index] for index in order.indices(0, step, microbatch)]
            x, y = (torch.stack([torch.as_tensor(item[i]) for item in items]) for i in range(2))
            loss = loss_of(model(x.to(dtype) if x.is_floating_point() else x), y) / num_microbatches
            loss.backward()
            total += loss.item()
            for name, p in trained.items():
                if p.grad is not None:
                    adder, own = adder_of(name, microbatch), sums[name]
                    own[adder] = own[adder] + p.grad if adder in own else p.grad
                    p.grad = None
        for name, p in trained.items():
            p.grad = reduce(torch.add, sums[name].values()) if sums[name] else None
        losses.append(total)
    return losses, model


def relative_difference(found: Any, expected: Any) -> float:
    scale = max(float(np.abs(expected).max(initial=0)), 1e-300)
    return float(np.abs(found - expected).max(initial=0)) / scale


def total_of(losses_by_rank: list[Mapping[int, float]]) -> float:
    return sum(loss for losses in losses_by_rank for loss in losses.values())


def replica_mixes(num_ranks: int) -> list[list[int]]:
    """Return every way to give a number of ranks to stages in order: [3], [2, 1], [1, 2], [1, 1, 1]."""
    if not num_ranks:
        return [[]]
    return [
        [first, *rest]
        for first in range(num_ranks, 0, -1)
        for rest in replica_mixes(num_ranks - first)
    ]
