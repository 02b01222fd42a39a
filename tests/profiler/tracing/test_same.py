"""A graph that computes the model's output and other gradients is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stagewright.document import InputError
from stagewright.profiler.tracing.trace import Tracing

from .conftest import traced

FX, EXPORT = (Tracing(method=method) for method in ("fx", "export"))


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)


class Hooked(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.first(x)
        hidden.register_hook(lambda gradient: gradient * 2)  # type: ignore[no-untyped-call]
        result: Tensor = self.second(hidden)
        return result


class Negated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class OwnBackward(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        hidden = Negated.apply(self.first(x))  # type: ignore[no-untyped-call]
        result: Tensor = self.second(hidden)
        return result


class ScaledInPlaceWithoutGradient(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        with torch.no_grad():
            hidden.mul_(2.0)
        result: Tensor = self.second(hidden)
        return result


class MayDetach(nn.Module):
    stagewright_layer = True

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, is_cut: bool = False) -> Tensor:
        result: Tensor = self.linear(x)
        return result.detach() if is_cut else result


class ToldToDetach(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = MayDetach()
        self.second = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x, is_cut=True) + x)
        return result


class Softmax(TwoLayers):
    """Its sum is a constant, so a check by the sum's gradients would see nothing."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = Negated.apply(self.first(x))  # type: ignore[no-untyped-call]
        return torch.softmax(self.second(hidden), dim=1)


class Mixed(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.first(x)
        result: Tensor = self.second(hidden.float())
        return result


class WithoutAutocast(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            hidden = self.first(x)
        result: Tensor = self.second(hidden.bfloat16())
        return result


class HookedPart(TwoLayers):
    """The hook of a part with layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.part.register_full_backward_hook(lambda module, made, came: (2 * made[0],))  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        result: Tensor = self.second(self.part(hidden))
        return result


class Frozen(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = self.first(x)
        result: Tensor = self.second(hidden + x)
        return result


@pytest.mark.parametrize("build", [Hooked, OwnBackward, ScaledInPlaceWithoutGradient, Softmax])
def test_other_gradients_are_refused_though_the_output_is_the_same(
    build: Callable[[], nn.Module],
) -> None:
    with pytest.raises(InputError, match=r"another gradient of \S+ than the model"):
        traced(build(), 4, how=EXPORT)


class RecomputedBehindNoGrad(TwoLayers):
    """Re-entrant checkpointing: export sees the first layer's forward without gradients."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.first, self.second(x), use_reentrant=True)
        result: Tensor = self.second(hidden)
        return result


def test_reentrant_checkpointing_is_refused_by_its_gradients() -> None:
    with pytest.raises(InputError, match=r"another gradient of first.weight than the model"):
        traced(RecomputedBehindNoGrad(), 4, how=EXPORT)


class ClipsItsWeights(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        self.second.weight.data.clamp_(-1, 1)
        result: Tensor = self.second(self.first(x))
        return result


class Mapped(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.vmap(self.second)(self.first(x))
        return result


@pytest.mark.parametrize(
    ("build", "how", "reason"),
    [
        (ClipsItsWeights, FX, "write it out of place"),
        (Mapped, FX, "vmap"),
        (Mapped, EXPORT, "vmap"),
    ],
)
def test_what_no_stage_could_repeat_is_refused_by_line(
    build: type[nn.Module], how: Tracing, reason: str
) -> None:
    line = build.forward.__code__.co_firstlineno + 1
    with pytest.raises(InputError, match=rf"^{__file__}:{line}: .*{reason}"):
        traced(build(), 4, how=how)


@pytest.mark.filterwarnings("ignore:For backward hooks to be called")
def test_fx_names_the_last_layer_whose_gradients_differ() -> None:
    line = HookedPart.forward.__code__.co_firstlineno + 1
    with pytest.raises(
        InputError, match=rf"{__file__}:{line}: .* another gradient of first.weight"
    ):
        traced(HookedPart(), 4, how=FX)


@pytest.mark.parametrize("how", [FX, EXPORT])
def test_a_parameter_with_a_hook_is_refused(how: Tracing) -> None:
    model = Frozen()
    model.second.weight.register_hook(lambda gradient: gradient * 2)  # type: ignore[no-untyped-call]
    with pytest.raises(InputError, match=r"parameter second.weight has a hook"):
        traced(model, 4, how=how)


def test_a_layer_is_called_with_the_literals_that_decide_its_gradients() -> None:
    layers = {layer.name: layer for layer in traced(ToldToDetach(), 4, how=EXPORT).layers}
    assert layers["first"].keyword_arguments == {"is_cut": True}


@pytest.mark.parametrize("method", ["auto", "fx", "export"])
def test_autocast_on_the_cpu_inside_of_a_forward_is_refused(method: str) -> None:
    with pytest.raises(InputError, match="autocast"):
        traced(Mixed(), 4, how=Tracing(method=method))


def test_a_model_under_autocast_as_a_whole_is_traced_by_fx() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        layers = traced(model, 4, how=FX).layers
        with pytest.raises(InputError, match="autocast"):
            traced(WithoutAutocast(), 4, how=FX)
    assert [layer.name for layer in layers][1:] == ["0", "1", "2"]


def test_a_layer_under_no_grad_gets_no_gradient_in_the_graph_either() -> None:
    names = [layer.name for layer in traced(Frozen(), 4, how=EXPORT).layers]
    assert "second" in names and "first" not in names


def test_a_layer_told_to_detach_is_traced_by_fx_with_its_argument() -> None:
    layers = {layer.name: layer for layer in traced(ToldToDetach(), 4).layers}
    assert layers["first"].keyword_arguments == {"is_cut": True}
