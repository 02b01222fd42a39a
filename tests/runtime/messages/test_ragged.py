"""Models whose borders carry ragged rows, COO, booleans, None and numbers train as in one process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stagewright.runtime.training.batches import DataOrder
from stagewright.task import load_task

RankPool = Any
MakePackage = Any
TASK = str(Path(__file__).parent / "ragged_task.py")
NUM_STEPS = 2


def one_process(num_microbatches: int, size: int) -> tuple[list[float], torch.nn.Module]:
    """Train the original model in a plain loop; return the steps' losses."""
    task = load_task(TASK)
    torch.manual_seed(0)
    model = task.build().double()
    loss_of, dataset = task.function("loss"), task.function("dataset")("train")
    order = DataOrder(len(dataset), size, num_microbatches, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for step in range(NUM_STEPS):
        total = 0.0
        for microbatch in range(num_microbatches):
            items = [dataset[index] for index in order.indices(0, step, microbatch)]
            x, y = (torch.stack([torch.as_tensor(item[i]) for item in items]) for i in range(2))
            loss = loss_of(model(x.double()), y) / num_microbatches
            loss.backward()
            total += loss.item()
        losses.append(total)
        optimizer.step()
        optimizer.zero_grad()
    return losses, model


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("replicas", "num_microbatches", "schedule"),
    [
        ([1, 1], 5, "1f1b"),
        ([1, 1, 1], 4, "gpipe"),
        ([2, 1], 5, "1f1b"),
        ([1, [2, 1]], 4, "1f1b"),
        ([1, 1, 1], 4, "zero-bubble"),
    ],
)
def test_training_over_ragged_borders_equals_one_process(
    rank_pool: RankPool,
    make_package: MakePackage,
    replicas: list[Any],
    num_microbatches: int,
    schedule: str,
) -> None:
    package = make_package(TASK, replicas, num_microbatches, schedule)
    results = rank_pool.run(
        "steps",
        package.num_ranks,
        num_steps=NUM_STEPS,
        settings={"dtype": "float64"},
        **package.arguments,
    )
    losses, model = one_process(num_microbatches, package.microbatch_size)
    for step, expected in enumerate(losses):
        found = sum(loss for steps, _ in results for loss in steps[step].values())
        assert found == pytest.approx(expected, rel=1e-12)
    for name, parameter in model.named_parameters():
        for _, state in results:
            if name in state:
                np.testing.assert_allclose(state[name], parameter.detach(), rtol=1e-11, atol=1e-13)
