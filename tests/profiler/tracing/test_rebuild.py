"""Rebuilding: a constructor call is readable, and is given only if it makes the same module."""

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stagewright.graph import Constructor
from stagewright.profiler.tracing.rebuild import constructor_of, is_same_module
from stagewright.value import SequenceArgument, TorchConstant


def written(constructor: Constructor | None) -> str | None:
    """Return a call as text; tuples as Python writes them."""
    if constructor is None:
        return None
    keywords = [f"{key}={_text(value)}" for key, value in constructor.keyword_arguments.items()]
    name = constructor.type.removeprefix("torch.")
    return f"{name}({', '.join([*map(_text, constructor.arguments), *keywords])})"


def _text(value: object) -> str:
    if isinstance(value, SequenceArgument):
        return f"({', '.join(map(_text, value.items))})"
    return f"torch.{value.name}" if isinstance(value, TorchConstant) else repr(value)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (nn.Conv2d(3, 64, 3, padding=1), "nn.Conv2d(3, 64, kernel_size=3, padding=1)"),
        (nn.Conv2d(4, 4, (1, 3), bias=False), "nn.Conv2d(4, 4, kernel_size=(1, 3), bias=False)"),
        (nn.Linear(4, 2, dtype=torch.float64), "nn.Linear(4, 2, dtype=torch.float64)"),
        (nn.MaxPool2d(2), "nn.MaxPool2d(kernel_size=2)"),
        (
            nn.MaxPool2d(3, 2, ceil_mode=True),
            "nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)",
        ),
        (nn.BatchNorm2d(8, momentum=0.2), "nn.BatchNorm2d(8, momentum=0.2)"),
        (nn.ReLU(inplace=True), "nn.ReLU(inplace=True)"),
        (nn.Dropout(0.1), "nn.Dropout(p=0.1)"),
        (nn.Embedding(10, 4, padding_idx=0), "nn.Embedding(10, 4, padding_idx=0)"),
        (nn.LayerNorm(8, bias=False), "nn.LayerNorm(8, bias=False)"),
        (nn.LayerNorm((2, 4)), "nn.LayerNorm((2, 4))"),
        (nn.AdaptiveAvgPool2d((7, 7)), "nn.AdaptiveAvgPool2d((7, 7))"),
        (nn.GELU("tanh"), "nn.GELU(approximate='tanh')"),
        (nn.Identity(), "nn.Identity()"),
    ],
)
def test_a_module_of_torch_is_written_readably(module: nn.Module, text: str) -> None:
    assert written(constructor_of(module)) == text


def _with_hook(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module


def _changed(module: nn.Module, name: str, value: object) -> nn.Module:
    setattr(module, name, value)
    return module


class Mine(nn.Linear):
    pass


@pytest.mark.parametrize(
    "module",
    [
        Mine(2, 2),
        _with_hook(nn.Linear(2, 2)),
        _changed(nn.Linear(2, 2), "weight", nn.Parameter(torch.ones(3, 3))),
        _changed(nn.Linear(2, 2), "flag", 1),
        _changed(nn.Conv2d(2, 2, 3), "padding", (1, 1)),
        nn.Linear(2, 2).requires_grad_(False),
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
    ],
)
def test_a_module_that_no_call_gives_back_has_no_constructor(module: nn.Module) -> None:
    assert constructor_of(module) is None


@settings(max_examples=25, deadline=None)
@given(
    channels=st.sampled_from([2, 4]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, "same", "valid"]),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    padding_mode=st.sampled_from(("zeros", "reflect")),
)
def test_any_convolution_is_rebuilt_as_the_same_module(
    channels: int, kernel: tuple[int, int], stride: int, padding: int | str,
    groups: int, bias: bool, padding_mode: Literal["zeros", "reflect"],
) -> None:  # fmt: skip
    stride = 1 if padding == "same" else stride
    module = nn.Conv2d(
        channels, 4, kernel, stride=stride, padding=padding, groups=groups, bias=bias,
        padding_mode=padding_mode,
    )  # fmt: skip
    text = written(constructor_of(module))
    assert text is not None
    rebuilt = eval(text, {"nn": nn, "torch": torch})  # noqa: S307  (our own text, made above)
    assert is_same_module(module, rebuilt)
