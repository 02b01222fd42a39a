"""Generated stages compute what the original computes, wherever the model is cut."""

import copy
import itertools
import random
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stagewright.graph import LayerGraph
from stagewright.models import digits_cnn, gpt, resnet
from stagewright.optimizer.borders import chain_of
from stagewright.value import NumberSpec, Size, size_at


class Skips(nn.Module):
    """Skips over several layers, one tensor used three times, operators, numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.middle = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = self.middle(a) * 2 - a / 3
        c = torch.sigmoid(b) ** -1 + (-2.0) * a + 2**b
        return self.last(c @ c.t() @ a + b).reshape(x.size(0) * 3)  # type: ignore[no-any-return]


class SeveralInputs(nn.Module):
    """Keyword inputs with awkward names, integers among them; a dict of tuples comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.linear = nn.Linear(4, 4)

    def forward(self, input: Tensor, torch_: Tensor, type: Tensor) -> dict[str, Any]:
        words = self.embedding(type)
        y = self.linear(words) + torch_ * input
        return {"all": (y, [input, words]), "sum": y.sum(dim=(1,), keepdim=True)}


class InPlace(nn.Module):
    """In-place modules, methods and operators behind every cut, also on a view."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm(self.first(x)))
        z = self.last(y)
        z += y
        w = z.view(-1, 4, 16)
        w = w.relu_()
        w = torch.nn.functional.relu(w * 2, inplace=True)
        return (w + 1).mul_(3).flatten(1)


class Shared(nn.Module):
    """A module called twice, tied weights, a weight used bare, frozen parts, one in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.body = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.frozen = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 6))
        self.frozen.requires_grad_(False)
        self.frozen[0].eval()
        self.partly = nn.Linear(6, 6)
        self.partly.bias.requires_grad_(False)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embedding(tokens)
        x = self.body[0](torch.relu(self.body[1](self.body[0](x))))
        x = self.partly(self.frozen(x))
        return self.head(x), functional.linear(x, self.embedding.weight)


class Bare(nn.Module):
    """Bare parameters and buffers, nested, persistent or not, used several times."""

    shift: Tensor
    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(5))
        self.fixed = nn.Parameter(torch.rand(5), requires_grad=False)
        self.register_buffer("shift", torch.rand(5))
        self.register_buffer("mask", torch.rand(5, 5) > 0.5, persistent=False)
        self.inner = nn.Module()
        self.inner.outputs = nn.ParameterList([nn.Parameter(torch.rand(5, 5))])
        self.inputs = nn.Linear(5, 5)
        self.outputs = nn.Linear(5, 5)
        self.before_random = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inputs(x * self.scale + self.shift) * self.fixed
        matrix: Tensor = self.inner.outputs[0]  # type: ignore[index]
        y = y @ matrix.masked_fill(self.mask, float("-inf")).softmax(-1)
        return self.before_random(self.outputs(y)) * self.scale  # type: ignore[no-any-return]


class Custom(nn.Module):
    """A module of the user's own, which nothing but the original can build."""

    stagewright_layer = True

    def __init__(self, power: int) -> None:
        super().__init__()
        self.power = power
        self.weight = nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        return x if self.power == 1 else (x * self.weight) ** self.power


class WithCustom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"a-b": Custom(2), "1": nn.Linear(4, 4), "class": Custom(1)})
        self._hidden = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        y = self.parts["a-b"](x)
        return self._hidden(self.parts["class"](self.parts["1"](y)))  # type: ignore[no-any-return]


class Shapes(nn.Module):
    """Tuples, slices, ellipsis, dtypes, devices, sizes that grow with the micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.lstm = nn.LSTM(6, 3, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        batch, time, _ = x.shape
        y, (state, _) = self.lstm(self.linear(x))
        y = torch.cat([y, y[:, 0:1].expand(batch, time, 3)], dim=-1)
        left, right = y.split(3, dim=2)  # type: ignore[no-untyped-call]
        steps = torch.arange(time, device=x.device, dtype=x.dtype)
        flat = (left * right + steps[None, :, None]).view(batch * time, -1)
        top, where = flat.reshape(batch, -1).max(dim=1)
        weights = torch.full((time,), 0.5, device=y.device).to(torch.float32)
        return (
            flat[..., ::2],
            top + where.float(),
            state.squeeze(0),
            weights.clamp(max=float("inf")),
        )


def floats(*shape: int) -> Callable[[int], Tensor]:
    return lambda size: torch.randn(size, *shape, generator=torch.Generator().manual_seed(size))


def tokens(size: int) -> Tensor:
    return torch.arange(size) % 7


def several(size: int) -> dict[str, Tensor]:
    return {"type": tokens(size), "torch_": floats(4)(size), "input": floats(4)(size + 1)[1:]}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
    "skips": (Skips, floats(6)),
    "several inputs": (SeveralInputs, several),
    "in place": (InPlace, floats(2, 4, 4)),
    "shared": (Shared, tokens),
    "bare": (Bare, floats(5)),
    "custom": (WithCustom, floats(4)),
    "shapes": (Shapes, floats(5, 6)),
    "digits_cnn": (digits_cnn.build, digits_cnn.example_input),
    "resnet": (resnet.build, resnet.example_input),
    "gpt": (lambda: gpt.Gpt(16, 2, 2, 0.1), gpt.example_input),
}


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


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_bit_equal_for_every_cut(name: str, workshop: Any) -> None:
    build, example_input = MODELS[name]
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


@pytest.mark.parametrize("name", MODELS)
def test_stages_on_their_own_with_nothing_shared_train_the_same(name: str, workshop: Any) -> None:
    build, example_input = MODELS[name]
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
    package = workshop.package(workshop.trace(model, floats(4)), ())
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


def test_modules_that_the_model_keeps_in_eval_mode_stay_in_it(workshop: Any) -> None:
    package = workshop.package(workshop.trace(Shared(), tokens), ())
    stage = package.Stage0(Shared())
    assert not stage.frozen["0"].training and stage.partly.training
    stage.train(False)
    assert not stage.partly.training
    assert stage.train() is stage
    assert not stage.frozen["0"].training and stage.partly.training


def test_two_runs_in_other_processes_write_identical_bytes(workshop: Any) -> None:
    graph = workshop.trace(Shared(), tokens)
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


@pytest.mark.parametrize("name", MODELS)
def test_generated_files_are_formatted_and_pass_ruff(name: str, workshop: Any) -> None:
    build, example_input = MODELS[name]
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
