"""Descriptions: what torch prints of a module makes the same module again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stagewright.document import InputError
from stagewright.optimizer.codegen.expressions import Scope, constructor_expression
from stagewright.optimizer.codegen.layout import flat
from stagewright.optimizer.pipedream.generation.descriptions import (
    TORCH_CLASSES,
    ModuleText,
    parse_description,
)

MODULES = [
    nn.Conv2d(3, 8, (3, 5), stride=2, padding=1, bias=False), nn.ConvTranspose2d(4, 2, 2, output_padding=0),
    nn.Linear(3, 4), nn.LSTM(4, 4, num_layers=2, dropout=0.5, batch_first=True), nn.GRU(3, 3, bias=False),
    nn.BatchNorm2d(4, eps=1e-3, momentum=None), nn.LayerNorm((3, 4)), nn.GroupNorm(2, 4),
    nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AdaptiveAvgPool2d((1, None)), nn.AvgPool2d(2), nn.Flatten(),
    nn.Embedding(9, 3, 0),
    nn.Softmax(dim=-1), nn.GELU(approximate="tanh"), nn.LeakyReLU(-0.5, inplace=True), nn.Hardtanh(-1.5, 2),
    nn.Upsample(scale_factor=2.0, mode="bilinear"), nn.Dropout2d(0.25), nn.LocalResponseNorm(2), nn.PReLU(3),
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=lambda module: type(module).__name__)
def test_a_module_of_torch_that_prints_as_a_call_is_made_again(module: nn.Module) -> None:
    parsed = parse_description(str(module))
    assert isinstance(parsed, ModuleText)
    source = flat(constructor_expression(parsed.constructor, Scope(place="test")))
    again = eval(source, {"nn": nn, "torch": torch})  # noqa: S307 - of our own making
    assert str(again) == str(module)
    assert {n: t.shape for n, t in again.state_dict().items()} == {
        n: t.shape for n, t in module.state_dict().items()
    }


def test_the_known_classes_are_classes_of_torch() -> None:
    for name in sorted(TORCH_CLASSES):
        assert issubclass(getattr(nn, name), nn.Module)


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused_in_one_line(text: str) -> None:
    for description in (text, f"Linear({text})", f"View({text})"):
        try:
            parse_description(description)
        except ValueError as error:
            assert not isinstance(error, InputError | UnicodeError)
            assert "\n" not in str(error)


def test_sparse_modules_of_older_versions_take_todays_arguments() -> None:
    old = (
        "MinkowskiConvolution(in_channels=1, out_channels=4, kernel_size=[3, 3, 3], has_bias=False)"
    )
    new = old.replace("has_bias=False", "bias=None")
    parsed = [parse_description(text) for text in (old, new)]
    assert parsed[0] == parsed[1]
    assert isinstance(parsed[0], ModuleText)
    assert parsed[0].constructor.keyword_arguments["bias"] is False
    pooling = parse_description(
        "MinkowskiGlobalMaxPooling(mode=PoolingMode.GLOBAL_MAX_POOLING_KERNEL)"
    )
    assert isinstance(pooling, ModuleText)
    assert pooling.constructor.keyword_arguments == {}
