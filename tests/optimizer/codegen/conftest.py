"""Builds a model's layer graph and plans of it, generates packages, and imports them."""

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stagewright.document import sha256_of
from stagewright.graph import LayerCost, LayerGraph, LayerNode, ModelIdentity
from stagewright.models import densenet, digits_cnn, experts, gnmt, gpt, inception, resnet, unet
from stagewright.optimizer.borders import borders_of, inputs_of, stage_layers
from stagewright.optimizer.codegen.package import GeneratedPackage, generate
from stagewright.plan import Plan, Proof, Replica, ReplicaPrediction, Source, Stage
from stagewright.profiler.tracing.trace import TracedModel, trace
from stagewright.task import Task

COST = LayerCost(batch_size=2, forward_ms=1.0, backward_ms=1.0, output_bytes=0)
PREDICTED = ReplicaPrediction(
    forward_ms=1.0, backward_ms=1.0, reduce_ms=0.0, update_ms=0.0, peak_bytes=1
)


class Workshop:
    """A folder in which graphs, plans and packages are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.imported: list[str] = []

    def trace(self, model: nn.Module, example_input: Callable[[int], Any]) -> LayerGraph:
        """Return a model's graph, all layers at one cost."""
        module = types.ModuleType("task_under_test")
        module.build = lambda: model  # type: ignore[attr-defined]
        module.example_input = example_input  # type: ignore[attr-defined]
        traced: TracedModel = trace(
            Task(name="task_under_test", factory="build", module=module), model
        )
        layers = [layer.replace(costs=(COST,)) for layer in traced.layers]
        return self.graph(layers, traced.output, tied=traced.tied, sha256=traced.structure_sha256)

    def graph(
        self,
        layers: Sequence[LayerNode],
        output: Any,
        *,
        tied: tuple[tuple[str, ...], ...] = (),
        sha256: str = "0" * 64,
    ) -> LayerGraph:
        return LayerGraph(
            model=ModelIdentity(task="task_under_test", factory="build", structure_sha256=sha256),
            device_type="any",
            device="cpu",
            dtype="float32",
            torch_version="2.13.0",
            batch_sizes=(2,),
            layers=tuple(layers),
            output=output,
            tied=tied,
        )

    def plan(self, graph: LayerGraph, cuts: Sequence[int]) -> Path:
        """Write the graph and a plan with these cuts; return the plan's path."""
        graph.save(self.folder / "graph.json")
        names = stage_layers(graph, cuts)
        plan = Plan(
            task=graph.model.task,
            factory=graph.model.factory,
            structure_sha256=graph.model.structure_sha256,
            dtype=graph.dtype,
            microbatch_size=2,
            num_microbatches=2,
            schedule="1f1b",
            stages=tuple(
                Stage(
                    layers=layers,
                    replicas=(
                        Replica(
                            rank=rank, server="one", device_type="any", share=1, predicted=PREDICTED
                        ),
                    ),
                )
                for rank, layers in enumerate(names)
            ),
            borders=borders_of(graph, names, 2),
            inputs=inputs_of(graph, 2),
            predicted_step_ms=1.0,
            proof=Proof(
                solver="test", objective="step_ms", value=1.0, lower_bound=0.0, space="one plan"
            ),
            sources=(
                Source(
                    role="graph:any",
                    path="graph.json",
                    sha256=sha256_of(self.folder / "graph.json"),
                ),
            ),
        )
        path = self.folder / "plan.json"
        plan.save(path)
        return path

    def generate(
        self, graph: LayerGraph, cuts: Sequence[int], name: str = "package"
    ) -> GeneratedPackage:
        return generate(self.plan(graph, cuts), self.folder / name)

    def package(self, graph: LayerGraph, cuts: Sequence[int]) -> ModuleType:
        """Generate a package and import it."""
        self.generate(graph, cuts)
        return self.load("package")

    def load(self, name: str) -> ModuleType:
        """Import a generated package under a name of its own."""
        unique = f"generated_{id(self)}_{len(self.imported)}"
        folder = self.folder / name
        spec = importlib.util.spec_from_file_location(
            unique, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[unique] = module
        self.imported.append(unique)
        spec.loader.exec_module(module)
        return module

    def forget(self) -> None:
        for loaded in [m for m in sys.modules if m.partition(".")[0] in self.imported]:
            del sys.modules[loaded]


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


class Untraceable(nn.Module):
    """What torch.fx cannot follow: branches on sizes, zip, parts without gradient, and mode by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(8, 6)
        self.rnn = nn.LSTM(6, 6, batch_first=True)
        self.norm = nn.BatchNorm1d(6)
        self.heads = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)])
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> dict[str, Any]:
        states, _ = self.rnn(self.words(x))
        states = self.norm(states.transpose(1, 2)).transpose(1, 2)
        if states.shape[1] > 2 and isinstance(x, Tensor):
            states = states + torch.tensor([0.5, -0.25])[1]
        states = functional.dropout(states, 0.3, training=self.training)
        with torch.no_grad():
            scale = states.abs().amax(dim=(1, 2), keepdim=True) + 1
        states = self.attention(states, states, states)[0] / scale
        for size, head in zip(states.shape[1:], self.heads, strict=True):
            states = states + torch.cat([head(states), head(states)], -1) / int(size)
        return {"mean": states.mean(1), "rest": (states.relu_().sum(2),)}


def floats(*shape: int) -> Callable[[int], Tensor]:
    return lambda size: torch.randn(size, *shape, generator=torch.Generator().manual_seed(size))


def sentences(size: int) -> Tensor:
    return torch.arange(size * 5).reshape(size, 5) % 8


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
    "untraceable": (Untraceable, sentences),
    "digits_cnn": (digits_cnn.build, digits_cnn.example_input),
    "resnet": (resnet.build, resnet.example_input),
    "gpt": (lambda: gpt.Gpt(16, 2, 2, 0.1), gpt.example_input),
    "densenet": (densenet.build_small, densenet.example_input),
    "inception": (inception.build_small, inception.example_input),
    "unet": (unet.build_small, unet.example_input),
    "gnmt": (gnmt.build_small, gnmt.example_input),
    "experts": (experts.build_small, experts.example_input),
}


@pytest.fixture
def subjects() -> dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]]:
    """Models by name, each with its example input."""
    return MODELS


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    made = Workshop(tmp_path)
    yield made
    made.forget()
