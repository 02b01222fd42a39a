"""Measuring: what is kept and where time goes, judged on models whose costs are known beforehand."""

import time
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagewright.document import InputError
from stagewright.profiler.measuring.measure import Measurements, Repeats, measure
from stagewright.profiler.tracing.trace import trace
from stagewright.task import Task
from stagewright.value import tensors_of


class Slow(torch.autograd.Function):
    """The identity; its backward counts 20 ms of processor time."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass
        return gradient.clone()


class SlowBackward(nn.Module):
    stagewright_layer = True

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Slow.apply(x)  # type: ignore[no-untyped-call]
        return y


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 8)
        self.relu = nn.ReLU(inplace=True)
        self.slow = SlowBackward()
        self.two = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.one(x))
        y = self.two(self.slow(y) + y)
        return y


def task_of(**functions: Any) -> Task:
    module = types.ModuleType("task_under_test")
    module.build = Net  # type: ignore[attr-defined]
    module.example_input = lambda size: torch.ones(size, 8)  # type: ignore[attr-defined]
    for name, function in functions.items():
        setattr(module, name, function)
    return Task(name="task_under_test", factory="build", module=module)


def measured(task: Task, sizes: tuple[int, ...] = (4,), slowdown: float = 1.0) -> Measurements:
    traced = trace(task, task.build())
    return measure(traced, task, sizes, Repeats(repeats=2), slowdown=slowdown)


def test_time_of_a_backward_is_billed_to_its_own_layer() -> None:
    costs = {name: cost[0].backward_ms for name, cost in measured(task_of()).layers.items()}
    assert max(costs, key=costs.__getitem__) == "slow"
    assert costs["slow"] > 0.9 * sum(costs.values())
    assert costs["x"] == 0


def test_memory_that_several_layers_keep_counts_once_and_parameters_do_not_count() -> None:
    found = measured(task_of(), (4, 6))
    for i, size in enumerate((4, 6)):
        saved = {name: cost[i].saved_bytes for name, cost in found.layers.items()}
        activation = size * 8 * 4
        assert saved == {
            "x": 0, "one": activation, "relu": activation, "slow": 0, "add": 0, "two": activation,
        }  # fmt: skip


def test_the_loss_is_measured_where_the_task_has_data() -> None:
    data = [(torch.zeros(8), torch.tensor(1))] * 3
    loss = nn.functional.cross_entropy
    assert measured(task_of(loss=loss)).loss == ()
    found = measured(task_of(loss=loss, dataset=lambda split: data), (2, 5))
    assert [cost.batch_size for cost in found.loss] == [2, 5]
    assert all(cost.forward_ms > 0 and cost.backward_ms > 0 for cost in found.loss)
    assert [step.batch_size for step in found.whole] == [2, 5]


def test_measuring_leaves_the_parameters_and_the_number_of_threads() -> None:
    task = task_of()
    traced = trace(task, task.build())
    before = [p.detach().clone() for p in traced.model.parameters()]
    threads = torch.get_num_threads()
    found = measure(traced, task, (2,), Repeats(repeats=1))
    assert all(map(torch.equal, before, traced.model.parameters()))
    assert torch.get_num_threads() == threads
    sizes = {layer.name: layer.output for layer in traced.layers}
    for name, costs in found.layers.items():
        spec = sizes[name]
        assert spec is not None
        assert costs[0].output_bytes == sum(t.bytes_at(2) for t in tensors_of(spec))
        assert costs[0].repeats == 1


def test_a_loss_that_fails_is_named_by_line() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output - target[:, None, None].expand(-1, 3, 3)).sum()

    data = [(torch.zeros(8), torch.tensor(1.0))] * 3
    with pytest.raises(
        InputError, match=r"test_measure.py:\d+: a training step of 4 samples fails"
    ):
        measured(task_of(loss=loss, dataset=lambda split: data))


def test_data_that_is_no_pairs_is_refused() -> None:
    task = task_of(loss=nn.functional.cross_entropy, dataset=lambda split: [])
    with pytest.raises(InputError, match="no map-style dataset of"):
        measured(task)
