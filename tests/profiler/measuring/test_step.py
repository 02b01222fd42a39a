"""The walk: the same training step as the model's own, only watched."""

import pytest
import torch

from stagewright.profiler.measuring.clock import ProcessClock
from stagewright.profiler.measuring.measure import batch_of
from stagewright.profiler.measuring.step import LOSS, Walk, run_whole
from stagewright.profiler.tracing.trace import trace
from stagewright.task import load_task


@pytest.mark.parametrize("name", ["mlp", "resnet", "gpt:build_without_dropout"])
def test_a_walk_makes_the_gradients_of_the_models_own_step(name: str) -> None:
    task = load_task(f"stagewright.models.{name}")
    torch.manual_seed(0)
    traced = trace(task, task.build())
    batch, clock, walk = batch_of(traced, task, 2), ProcessClock(), Walk(traced)
    gradients = []
    for run in (
        lambda: walk.run(batch, clock, lambda: None),
        lambda: run_whole(traced.model, batch, clock, lambda: None, lambda: None),
    ):
        traced.model.zero_grad()
        run()
        gradients.append([p.grad for p in traced.model.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert first is not None and second is not None
        assert torch.equal(first, second)


def test_every_layer_with_a_gradient_has_a_backward_time() -> None:
    task = load_task("stagewright.models.resnet")
    traced = trace(task, task.build())
    times = Walk(traced).run(batch_of(traced, task, 2), ProcessClock(), lambda: None)
    places = range(1, len(traced.layers))
    assert sorted(times.forward_ms) == [LOSS, *places]
    assert sorted(times.backward_ms) == [LOSS, *places]
    assert min(times.backward_ms.values()) > 0
