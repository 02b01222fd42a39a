"""The walk: the same training step as the model's own, only watched."""

import pytest
import torch

from stagewright.profiler.measuring.batches import batch_of
from stagewright.profiler.measuring.clock import ProcessClock
from stagewright.profiler.measuring.counters import FLOPS, WorkMeter
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
    assert sorted(times.forward) == [LOSS, *places]
    assert sorted(times.backward) == [LOSS, *places]
    assert min(times.backward.values()) > 0


@pytest.mark.parametrize("name", ["resnet", "gpt:build_without_dropout"])
def test_a_backward_in_two_parts_makes_the_weights_gradients_apart_and_none_below_the_first_layer(
    name: str,
) -> None:
    task = load_task(f"stagewright.models.{name}")
    traced = trace(task, task.build())
    walk, batch = Walk(traced), batch_of(traced, task, 2)
    times = walk.run(batch, ProcessClock(), in_parts=True)
    first = next(i for i, layer in enumerate(traced.layers) if layer.parameters)
    assert first not in times.backward
    named = traced.model.named_parameters(remove_duplicate=False)
    found = {name: p.grad for name, p in named}
    traced.model.zero_grad()
    whole = walk.run(batch, ProcessClock())
    assert set(times.backward) < set(whole.backward)
    assert len(times.weights) > len(traced.layers) // 10
    for place, layer in enumerate(traced.layers):
        for parameter in layer.parameters:
            gradient = found[parameter.name]
            if place in times.weights:
                wanted = traced.model.get_parameter(parameter.name).grad
                assert wanted is not None and gradient is not None
                torch.testing.assert_close(gradient, wanted)
            else:
                assert gradient is None


def test_the_flops_of_the_two_parts_of_a_backward_are_the_whole_backwards() -> None:
    """A linear layer's two products are equally large; the first layer makes one for its weight."""
    task = load_task("stagewright.models.mlp")
    traced = trace(task, task.build())
    walk, batch = Walk(traced), batch_of(traced, task, 2)
    with WorkMeter() as meter:
        parts = walk.run(batch, meter, in_parts=True)
        whole = walk.run(batch, meter)
    linear = [i for i, layer in enumerate(traced.layers) if layer.parameters]
    for place in linear[1:]:
        assert 2 * parts.backward[place][FLOPS] == whole.backward[place][FLOPS] > 0
        assert parts.weights[place][FLOPS] == parts.backward[place][FLOPS]
    assert whole.backward[linear[0]][FLOPS] == whole.forward[linear[0]][FLOPS]
