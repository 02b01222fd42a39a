"""Identical layers: their copies would have been measured the same."""

import types

import pytest
import torch
from torch import Tensor, nn

from stagewright.document import InputError
from stagewright.profiler.measuring.identical import shortened
from stagewright.profiler.measuring.measure import Repeats, measure
from stagewright.profiler.tracing.trace import TracedModel, trace
from stagewright.task import Task, load_task


class Block(nn.Module):
    def __init__(self, width: int, rate: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + torch.relu(self.linear(x)) * self.rate
        return y


class Net(nn.Module):
    """Five equal blocks, one with another factor, two wider ones."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(8, 0.5) for _ in range(5)), Block(8, 0.25))
        self.widen = nn.Linear(8, 12)
        self.wide = nn.Sequential(Block(12), Block(12))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.wide(self.widen(self.blocks(x)))
        return y


def traced_net() -> tuple[Task, TracedModel]:
    module = types.ModuleType("task_with_blocks")
    module.build = Net  # type: ignore[attr-defined]
    module.example_input = lambda size: torch.ones(size, 8)  # type: ignore[attr-defined]
    task = Task(name="task_with_blocks", factory="build", module=module)
    return task, trace(task, Net())


def test_only_what_is_the_same_call_on_the_same_shapes_is_left_out() -> None:
    _, traced = traced_net()
    kept, copies = shortened(traced)
    modules = {name: other for name, other in copies.items() if name.endswith("linear")}
    assert modules == {f"blocks.{i}.linear": "blocks.1.linear" for i in (2, 3, 4)}
    assert {layer.name for layer in kept.layers} | set(copies) == {x.name for x in traced.layers}
    assert all(name not in copies.values() for name in copies)
    mul_of_last = [layer.name for layer in traced.layers if 0.25 in layer.arguments]
    assert len(mul_of_last) == 1 and mul_of_last[0] not in copies


@pytest.mark.parametrize("case", ["net", "gpt"])
def test_copies_take_over_what_would_have_been_measured(case: str) -> None:
    if case == "net":
        task, traced = traced_net()
    else:
        task = load_task("stagewright.models.gpt:build_deep")
        traced = trace(task, task.build())
    full = measure(traced, task, (2,), Repeats(repeats=1))
    reused = measure(traced, task, (2,), Repeats(repeats=1, reuse_identical=True))
    copies = 0
    assert set(full.layers) == set(reused.layers)
    for name, (cost,) in full.layers.items():
        (other,) = reused.layers[name]
        copies += other.taken_from is not None
        for what in ("output_bytes", "saved_bytes", "forward_flops", "backward_flops"):
            assert getattr(cost, what) == getattr(other, what), (name, what)
    assert copies > len(full.layers) / 3


def test_sizes_that_depend_on_the_data_are_refused() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(x[x > 0].unsqueeze(1))
            return y

    module = types.ModuleType("task_with_data")
    module.build = Masked  # type: ignore[attr-defined]
    module.example_input = lambda size: torch.randn(size, 8)  # type: ignore[attr-defined]
    task = Task(name="task_with_data", factory="build", module=module)
    with pytest.raises(InputError, match="--reuse-identical: sizes in this model depend"):
        shortened(trace(task, Masked()))
