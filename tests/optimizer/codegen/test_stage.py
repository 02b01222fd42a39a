"""Generated stages compute what the original computes, wherever the model is cut."""

import copy
import itertools
import random
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagewright.document import InputError
from stagewright.graph import LayerGraph
from stagewright.models import gpt
from stagewright.optimizer.borders import chain_of
from stagewright.value import NumberSpec, Size, size_at

NAMES = (
    "skips", "several inputs", "in place", "shared", "bare", "custom", "shapes",
    "untraceable", "digits_cnn", "resnet", "gpt",
)  # fmt: skip
"""Of the models in conftest.py."""


def tensors_of(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_of(list(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_of(item)


def call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def watched(inputs: Any) -> Any:
    """Return copies of inputs; those of floating point want gradients."""
    if isinstance(inputs, Tensor):
        return inputs.detach().clone().requires_grad_(inputs.is_floating_point())
    return {key: watched(value) for key, value in inputs.items()}


def backward(values: Sequence[Tensor]) -> None:
    total = torch.zeros(())
    for value in values:
        if value.requires_grad:
            weights = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype)
            total = total + (value.flatten() * weights).sum()
    total.backward()  # type: ignore[no-untyped-call]


def original_names(named: Mapping[str, Any]) -> dict[str, Any]:
    return {name.split(".", 2)[2]: value for name, value in named.items()}


def check_full_model(package: ModuleType, original: nn.Module, inputs: Any) -> None:
    """Demand bit-equal outputs, gradients and buffers of the chained stages and the original."""
    full = package.full_model(copy.deepcopy(original))
    full.load_state_dict(original.state_dict())
    original = copy.deepcopy(original)
    sides = []
    for model in (original, full):
        mine = watched(inputs)
        torch.manual_seed(3)
        output = call(model, mine)
        backward(list(tensors_of(output)))
        sides.append((output, [tensor.grad for tensor in tensors_of(mine)]))
    (expected, expected_grads), (found, found_grads) = sides
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert type(found) is type(expected)
    torch.testing.assert_close(found_grads, expected_grads, rtol=0, atol=0)
    mine_by_name = original_names(dict(full.named_parameters()))
    theirs = dict(original.named_parameters())
    assert mine_by_name.keys() == theirs.keys()
    for name, parameter in theirs.items():
        assert mine_by_name[name].requires_grad == parameter.requires_grad
        torch.testing.assert_close(mine_by_name[name].grad, parameter.grad, rtol=0, atol=0)
    state = full.state_dict()
    assert state.keys() == original.state_dict().keys()
    for name, value in original.state_dict().items():
        assert torch.equal(state[name], value)


def every_cut(graph: LayerGraph) -> list[tuple[int, ...]]:
    """Return every single cut and some sets of cuts, the finest among them."""
    length = len(chain_of(graph))
    rng = random.Random(5)
    singles: list[tuple[int, ...]] = [(cut,) for cut in range(1, length)]
    several = [
        tuple(sorted(rng.sample(range(1, length), rng.randint(2, min(6, length - 1)))))
        for _ in range(6 if length > 3 else 0)
    ]
    return [(), *singles, *several, tuple(range(1, min(length, 40)))]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_bit_equal_for_every_cut(
    name: str, workshop: Any, subjects: Any
) -> None:
    build, example_input = subjects[name]
    torch.manual_seed(0)
    original = build()
    graph = workshop.trace(original, example_input)
    for cuts in every_cut(graph):
        check_full_model(workshop.package(graph, cuts), original, example_input(3))


def size_of(value: Size | float | bool, batch_size: int) -> Any:
    return value if isinstance(value, float) else size_at(value, batch_size)


def run_detached(
    package: ModuleType, graph: LayerGraph, original: nn.Module, inputs: Any, batch_size: int
) -> tuple[Any, dict[str, Tensor]]:
    """Run stages as ranks do: nothing but detached tensors and numbers of the batch cross a border.

    Returns the output and the summed gradients by original name.
    """
    stages = [stage(copy.deepcopy(original)) for stage in package.STAGES]
    for stage in stages:
        stage.load_state_dict(
            {name: original.state_dict()[name] for name in stage.state_dict()}, strict=True
        )
    torch.manual_seed(3)
    by_key = inputs if isinstance(inputs, dict) else {0: inputs}
    values: dict[str, Any] = {}
    for layer in graph.layers:
        if layer.is_input:
            values[layer.name] = by_key[layer.operation.key]  # type: ignore[union-attr]
    received: list[dict[str, Any]] = []
    results: list[Any] = []
    for stage in stages:
        taken = {}
        for name in stage.inputs:
            spec = graph.by_name[name].output
            if isinstance(spec, NumberSpec):
                taken[name] = size_of(spec.value, batch_size)
            elif graph.by_name[name].is_input:
                taken[name] = values[name]
            else:
                taken[name] = detached(values[name])
        received.append(taken)
        results.append(stage(*taken.values()))
        values.update(zip(stage.outputs, results[-1], strict=True) if stage.outputs else ())
    backward(list(tensors_of(results[-1])))
    for index in range(len(stages) - 2, -1, -1):
        roots, grads = [], []
        for name, value in zip(stages[index].outputs, results[index], strict=True):
            for consumer in received[index + 1 :]:
                if name in consumer:
                    pairs = zip(tensors_of(value), tensors_of(consumer[name]), strict=True)
                    for made, taken_tensor in pairs:
                        if taken_tensor.grad is not None and made.requires_grad:
                            roots.append(made)
                            grads.append(taken_tensor.grad)
        torch.autograd.backward(roots, grads)
    total: dict[str, Tensor] = {}
    for stage in stages:
        for name, parameter in stage.named_parameters():
            if parameter.grad is not None:
                key = graph.canonical_names.get(name, name)
                total[key] = total[key] + parameter.grad if key in total else parameter.grad
    return results[-1], total


def detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    if isinstance(value, tuple | list):
        return type(value)(detached(item) for item in value)
    return value


@pytest.mark.parametrize("name", NAMES)
def test_stages_on_their_own_with_nothing_shared_train_the_same(
    name: str, workshop: Any, subjects: Any
) -> None:
    build, example_input = subjects[name]
    torch.manual_seed(0)
    original = build()
    graph = workshop.trace(original, example_input)
    for cuts in every_cut(graph)[-7:]:
        package = workshop.package(graph, cuts)
        found, gradients = run_detached(package, graph, original, example_input(3), 3)
        reference = copy.deepcopy(original)
        torch.manual_seed(3)
        expected = call(reference, example_input(3))
        backward(list(tensors_of(expected)))
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        wanted = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
        assert gradients.keys() == wanted.keys()
        for key, gradient in wanted.items():
            torch.testing.assert_close(gradients[key], gradient, rtol=1e-4, atol=1e-6)


def test_the_hook_is_called_right_before_each_random_layer(workshop: Any) -> None:
    graph = workshop.trace(gpt.Gpt(16, 2, 2, 0.1), gpt.example_input)
    package = workshop.package(graph, (5, 20))
    called: list[str] = []
    values: dict[str, Any] = {"tokens": gpt.example_input(2)}
    for stage_class in package.STAGES:
        stage = stage_class()
        assert stage.before_random("nothing") is None
        stage.before_random = called.append
        result = stage(*(values[name] for name in stage.inputs))
        values.update(zip(stage.outputs, result, strict=False))
    assert called == [layer.name for layer in graph.layers if layer.random]
    assert len(called) == 5


def test_a_forward_keeps_no_dead_activation(workshop: Any) -> None:
    """Weak references to every linear layer's output: no more of them live at once than are needed."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(8)))
    package = workshop.package(workshop.trace(model, lambda size: torch.rand(size, 4)), ())
    stage = package.Stage0()
    alive: list[Any] = []
    most = 0

    def watch(module: nn.Module, arguments: Any, output: Tensor) -> None:
        nonlocal most
        alive.append(weakref.ref(output))
        most = max(most, sum(reference() is not None for reference in alive))

    for module in stage.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(watch)
    with torch.no_grad():
        stage(torch.rand(2, 4))
    assert most == 2


def test_modules_that_the_model_keeps_in_eval_mode_stay_in_it(workshop: Any, subjects: Any) -> None:
    build, tokens = subjects["shared"]
    package = workshop.package(workshop.trace(build(), tokens), ())
    stage = package.Stage0(build())
    assert not stage.frozen["0"].training and stage.partly.training
    stage.train(False)
    assert not stage.partly.training
    assert stage.train() is stage
    assert not stage.frozen["0"].training and stage.partly.training


class PartlyFrozen(nn.Sequential):
    stagewright_layer = True


def partly_frozen() -> nn.Module:
    norm = nn.BatchNorm1d(4).eval()
    block = PartlyFrozen(nn.Linear(4, 4), nn.Sequential(norm, nn.Dropout(0.5)))
    return nn.Sequential(nn.Linear(4, 4), block, nn.Linear(4, 4))


def test_parts_of_a_coarse_layer_that_stay_in_eval_mode_stay_in_it(workshop: Any) -> None:
    graph = workshop.trace(partly_frozen(), lambda size: torch.rand(size, 4))
    package = workshop.package(graph, (2,))
    check_full_model(package, partly_frozen(), torch.rand(3, 4))
    for stage in package.full_model(partly_frozen()).eval().train().stages:
        parts = dict(stage.named_modules())
        assert all(part.training != path.endswith("1.1.0") for path, part in parts.items())


def test_a_part_that_trains_inside_of_one_in_eval_mode_is_refused(workshop: Any) -> None:
    model = partly_frozen()
    inner: Any = model.get_submodule("1.1")
    inner.eval()
    inner[1].train()
    with pytest.raises(
        InputError, match=r"its part '1.1' is in training inside of '1' in eval mode"
    ):
        workshop.trace(model, lambda size: torch.rand(size, 4))


def test_two_runs_in_other_processes_write_identical_bytes(workshop: Any, subjects: Any) -> None:
    build, tokens = subjects["shared"]
    graph = workshop.trace(build(), tokens)
    plan = workshop.plan(graph, (3, 6))
    for seed, name in itertools.product(("0", "1"), ("package",)):
        command = [
            sys.executable, "-m", "stagewright.cli", "generate", str(plan),
            "-o", str(workshop.folder / seed / name), "--json",
        ]  # fmt: skip
        subprocess.run(command, check=True, env={"PYTHONHASHSEED": seed}, capture_output=True)
    first, second = (
        {p.name: p.read_bytes() for p in (workshop.folder / seed / "package").iterdir()}
        for seed in "01"
    )
    assert first == second and len(first) == 5


@pytest.mark.parametrize("name", NAMES)
def test_generated_files_are_formatted_and_pass_ruff(
    name: str, workshop: Any, subjects: Any
) -> None:
    build, example_input = subjects[name]
    graph = workshop.trace(build(), example_input)
    workshop.generate(graph, (2, 4))
    folder = str(workshop.folder / "package")
    ruff = [sys.executable, "-m", "ruff"]
    options = ["--isolated", "--no-cache", folder]
    check = [*ruff, "check", "--select", "F,E9,E7,W,I", *options]
    layout = [*ruff, "format", "--line-length", "100", "--diff", *options]
    for command in (check, layout):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
