"""Working memory, judged on layers whose allocations are known beforehand."""

import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagewright.profiler.measuring.batches import batches_of
from stagewright.profiler.measuring.step import LOSS, Walk
from stagewright.profiler.measuring.working import CpuPeakMeter, Peak, working_bytes
from stagewright.profiler.tracing.trace import trace
from stagewright.task import Task

MEGABYTE = 1 << 20
ROW_BYTES = 1 << 10
"""Of a sample's values at every layer."""


class Scratch(torch.autograd.Function):
    """The identity; takes 3 MiB for a moment in its forward and 5 MiB in its backward, saves nothing."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        torch.empty(3 * MEGABYTE, dtype=torch.uint8)
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        torch.empty(5 * MEGABYTE, dtype=torch.uint8)
        return gradient.clone()


class Scratching(nn.Module):
    stagewright_layer = True

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Scratch.apply(x)  # type: ignore[no-untyped-call]
        return y


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(ROW_BYTES // 4, ROW_BYTES // 4)
        self.act = nn.Sigmoid()
        self.scratch = Scratching()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.scratch(self.act(self.scale(x)))
        return y


@pytest.fixture(scope="module")
def found() -> dict[int | str, int]:
    """Of each layer by name, and of LOSS, with 64 samples."""
    module = types.ModuleType("task_under_test")
    functions: dict[str, Any] = {
        "build": Net,
        "example_input": lambda size: torch.zeros(size, ROW_BYTES // 4),
        "loss": lambda output, target: output.sum() * target.sum(),
        "dataset": lambda split: [(0, 1.0)],
    }
    vars(module).update(functions)
    task = Task(name="task_under_test", factory="build", module=module)
    traced = trace(task, Net())
    walk = Walk(traced)
    batches = batches_of(traced, task, 64)
    with CpuPeakMeter() as meter:
        walk.run(batches[0], meter)  # Parameters have gradients from now on.
    by_place = working_bytes(walk, batches, torch.device("cpu"))
    names = {i: layer.name for i, layer in enumerate(traced.layers)}
    return {LOSS: by_place[LOSS]} | {names[i]: n for i, n in by_place.items() if i != LOSS}


def test_a_kernel_s_scratch_memory_counts_with_the_values_and_gradients_of_that_moment(
    found: dict[int | str, int],
) -> None:
    values = 64 * ROW_BYTES
    # In its backward: the gradient that came and its copy; Sigmoid's result is saved.
    assert 5 * MEGABYTE <= found["scratch"] <= 5 * MEGABYTE + 3 * values


def test_a_layer_holds_the_gradients_of_its_backward(found: dict[int | str, int]) -> None:
    values, weights = 64 * ROW_BYTES, (ROW_BYTES // 4) * ROW_BYTES
    # Linear's input needs no gradient: the one of its output, and those of weights and bias.
    assert weights + values <= found["scale"] <= weights + 2 * values + ROW_BYTES + 4096
    assert values <= found["act"] <= 3 * values + 4096


def test_spans_together_have_the_higher_peak() -> None:
    assert Peak(3) + Peak(5) == Peak(5) + Peak(3) == Peak(5)
