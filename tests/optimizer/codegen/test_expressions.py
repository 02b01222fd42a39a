"""Expressions: evaluated, they give back the argument; a call computes what its target does."""

import math
import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stagewright.document import InputError
from stagewright.graph import Constructor, FunctionOperation, LayerCost, LayerNode, MethodOperation
from stagewright.optimizer.codegen.expressions import (
    Scope,
    argument_expression,
    constructor_expression,
    function_expression,
    method_expression,
)
from stagewright.optimizer.codegen.layout import flat
from stagewright.value import (
    DTYPE_BYTES,
    Argument,
    LayerRef,
    MappingArgument,
    SequenceArgument,
    SliceArgument,
    SpecialValue,
    TorchConstant,
)

NAMES = {"torch": torch, "nn": nn, "F": F, "math": math, "operator": operator}
COST = LayerCost(batch_size=1, forward_ms=0.0, backward_ms=0.0, output_bytes=0)

leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
    st.text(), st.just(LayerRef(name="a")),
    st.sampled_from(sorted(DTYPE_BYTES)).map(lambda name: TorchConstant(name=name)),
    st.builds(SpecialValue, name=st.sampled_from(["inf", "-inf", "ellipsis"])),
)  # fmt: skip
arguments = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(
            SequenceArgument,
            type=st.sampled_from(["tuple", "list"]),
            items=st.lists(inner, max_size=4).map(tuple),
        ),
        st.builds(MappingArgument, items=st.dictionaries(st.text(), inner, max_size=3)),
        st.builds(SliceArgument, start=inner, stop=inner, step=inner),
    ),
    max_leaves=10,
)


def meaning(argument: Argument) -> Any:
    """Return the value that an argument stands for, by the definitions of stagewright.value."""
    match argument:
        case LayerRef():
            return "the value of a"
        case SequenceArgument(type=kind, items=items):
            values = [meaning(item) for item in items]
            return values if kind == "list" else tuple(values)
        case MappingArgument(items=mapping):
            return {key: meaning(value) for key, value in mapping.items()}
        case SliceArgument(start=start, stop=stop, step=step):
            return slice(meaning(start), meaning(stop), meaning(step))
        case TorchConstant(name=name):
            return getattr(torch, name)
        case SpecialValue(name=name):
            return ... if name == "ellipsis" else float(name)
        case _:
            return argument


def evaluate(source: str, **values: Any) -> Any:
    return eval(source, dict(NAMES), values)  # noqa: S307


def scope(**values: str) -> Scope:
    return Scope(place="graph.json: layer 'it'", values=values)


@given(arguments)
def test_an_argument_evaluates_to_what_it_stands_for(argument: Argument) -> None:
    source = flat(argument_expression(argument, scope(a="a")))
    assert source.isascii()
    assert evaluate(source, a="the value of a") == meaning(argument)


def function(target: str, *items: Argument, **keywords: Argument) -> LayerNode:
    return LayerNode(
        name="it",
        operation=FunctionOperation(target=target),
        arguments=items,
        keyword_arguments=keywords,
        parameter_bytes=0,
        costs=(COST,),
    )


A, B = LayerRef(name="a"), LayerRef(name="b")
NOTHING = SliceArgument(start=None, stop=None, step=None)
PART = SliceArgument(start=1, stop=-1, step=None)


@pytest.mark.parametrize(
    ("layer", "written"),
    [
        (function("operator.add", A, B), "a + b"),
        (function("operator.pow", -2.0, A), "(-2.0) ** a"),
        (function("operator.pow", A, 2), "a**2"),
        (function("operator.neg", A), "-a"),
        (function("operator.getitem", A, 0), "a[0]"),
        (
            function(
                "operator.getitem", A, SequenceArgument(type="tuple", items=(NOTHING, None, PART))
            ),
            "a[:, None, 1:-1]",
        ),
        (
            function(
                "operator.getitem", A,
                SequenceArgument(type="tuple", items=(SpecialValue(name="ellipsis"), 0)),
            ),
            "a[..., 0]",
        ),
        (function("operator.getitem", A, SequenceArgument(type="list", items=(0, 1))), "a[[0, 1]]"),
        (function("builtins.getattr", A, "shape"), "a.shape"),
        (function("torch.flatten", A, 1), "torch.flatten(a, 1)"),
        (function("torch.nn.functional.relu", A, inplace=False), "F.relu(a, inplace=False)"),
        (function("torch.linalg.norm", A, dim=(None)), "torch.linalg.norm(a, dim=None)"),
        (function("operator.iadd", A, B), "operator.iadd(a, b)"),
        (function("math.sqrt", 2), "math.sqrt(2)"),
    ],
)  # fmt: skip
def test_functions_are_written_as_people_do(layer: LayerNode, written: str) -> None:
    assert flat(function_expression(layer, scope(a="a", b="b"))) == written
    a, b = torch.rand(3, 4, 5), torch.rand(3, 4, 5)
    evaluate(written, a=a, b=b)


@pytest.mark.parametrize(
    "layer",
    [
        function("os.system", "true"),
        function("torch.load", "weights.pt"),
        function("builtins.eval", "1"),
        function("builtins.getattr", A, "__class__"),
        function("builtins.getattr", A, "shape", 0),
        function("builtins.getattr", "text", "format"),
        function("operator.attrgetter", "x"),
        function("operator.getitem", "text", 0),
        function("torch.flatten", A, **{"x=1); import os; f(y": 1}),
        function("torch.flatten", A, **{"class": 1}),
        function("torch.empty", 1, dtype=TorchConstant(name="load('x')")),
        function("torch.empty", 1, device=TorchConstant(name="device:cpu'); import os; ('")),
    ],
)
def test_what_is_no_known_function_is_refused_with_its_place(layer: LayerNode) -> None:
    with pytest.raises(InputError, match=r"^graph\.json: layer 'it': .*expected"):
        function_expression(layer, scope(a="a"))


def test_methods_are_called_on_a_layer_s_value() -> None:
    layer = function("-", A, -1, 3)
    fields = {name: getattr(layer, name) for name in layer.__struct_fields__}
    view = LayerNode(**(fields | {"operation": MethodOperation(name="view")}))
    assert flat(method_expression(view, scope(a="a"))) == "a.view(-1, 3)"
    for operation, items in ((MethodOperation(name="__reduce__"), (A,)), (view.operation, ("x",))):
        with pytest.raises(InputError, match="layer 'it'"):
            bad = LayerNode(**(fields | {"operation": operation, "arguments": items}))
            method_expression(bad, scope(a="a"))


def test_a_constructor_is_a_call_of_its_class() -> None:
    call = Constructor(
        type="torch.nn.Conv2d", arguments=(3, 8), keyword_arguments={"kernel_size": 3}
    )
    used = scope()
    assert flat(constructor_expression(call, used)) == "nn.Conv2d(3, 8, kernel_size=3)"
    assert used.imports == {"nn"}
    with pytest.raises(InputError, match=r"expected a class of torch\.nn"):
        constructor_expression(Constructor(type="os.system", arguments=("true",)), scope())


def test_a_profiled_device_becomes_the_stage_s_own() -> None:
    used = scope()
    assert argument_expression(TorchConstant(name="device:cuda"), used) == "device"
    assert used.needs_device
