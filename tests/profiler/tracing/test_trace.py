"""Tracing: the layers, replayed from their own data, compute what the model computes."""

import importlib
import operator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stagewright.document import InputError
from stagewright.graph import (
    AttributeOperation,
    FunctionOperation,
    InputOperation,
    MethodOperation,
    ModuleOperation,
)
from stagewright.profiler.tracing.observe import tensors_in
from stagewright.profiler.tracing.trace import TracedModel, Tracing, trace
from stagewright.value import (
    CooSpec,
    LayerRef,
    MappingArgument,
    ModeArgument,
    NumberSpec,
    OpaqueSpec,
    PerSample,
    SequenceArgument,
    SliceArgument,
    SpecialValue,
    TensorSpec,
    TorchConstant,
)

from .conftest import task_of, traced


def test_a_module_is_named_by_its_path_and_its_second_call_is_marked() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ModuleList([nn.Linear(4, 4)])

        def forward(self, x: Tensor) -> Tensor:
            return self.body[0](torch.relu(self.body[0](x))) + x  # type: ignore[no-any-return]

    result = traced(Twice(), 4)
    assert [layer.name for layer in result.layers] == ["x", "body.0", "relu", "body.0@2", "add"]
    first, second = result.layers[1], result.layers[3]
    assert first.operation == second.operation and first.parameters == second.parameters
    assert [p.name for p in first.parameters] == ["body.0.weight", "body.0.bias"]
    assert first.parameter_bytes == (16 + 4) * 4
    assert result.layers[4].operation == FunctionOperation(target="operator.add")
    assert result.layers[4].inputs == ("body.0@2", "x")


def test_sizes_are_fixed_or_per_sample_and_equal_numbers_are_folded() -> None:
    class Shapes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            batch, rows, columns = x.shape
            return self.one(x).view(batch * rows, columns)  # type: ignore[no-any-return]

    layers = {layer.name: layer for layer in traced(Shapes(), 3, 6).layers}
    assert layers["view"].output == TensorSpec(
        shape=(PerSample(per_sample=3), 6), dtype="float32", requires_grad=True
    )
    assert layers["view"].arguments == (LayerRef(name="one"), LayerRef(name="mul"), 6)
    assert layers["mul"].output == NumberSpec(value=PerSample(per_sample=3))
    assert layers["mul"].arguments[1] == 3
    assert "getitem_1" not in layers


def test_an_overwritten_value_is_taken_from_the_layer_that_overwrote_it() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.one(x)
            self.relu(y)
            return y.mul_(2) + y

    result = traced(InPlace(), 4)
    layers = {layer.name: layer for layer in result.layers}
    assert layers["relu"].overwrites == "one"
    assert layers["mul_"].overwrites == "relu"
    assert layers["add"].arguments == (LayerRef(name="mul_"), LayerRef(name="mul_"))


def test_overwriting_memory_that_another_layer_needs_is_refused_by_line() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.one(x)
            y.view(-1).mul_(2)
            return y

    with pytest.raises(InputError, match=r"test_trace.py:\d+: layer 'mul_': .* write it out of"):
        traced(Shared(), 4)


def test_buffers_of_a_module_with_two_names_are_tied() -> None:
    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            self.other = self.norm

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) * 2  # type: ignore[no-any-return]

    result = trace(task_of(Aliased, lambda size: torch.zeros(size, 4)), Aliased())
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert result.tied == tuple((f"norm.{name}", f"other.{name}") for name in names)


def test_random_layers_and_frozen_modes_and_tied_parameters_are_found() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 4)
            self.dropout = nn.Dropout(0.5)
            self.norm = nn.BatchNorm1d(4).eval()
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.table.weight
            self.scale = nn.Parameter(torch.ones(4))
            self.register_buffer("shift", torch.zeros(4), persistent=False)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.norm(self.dropout(self.table(tokens)))
            return self.head(x * self.scale + self.shift)  # type: ignore[no-any-return]

    model = Mixed()
    result = trace(task_of(Mixed, lambda size: torch.zeros(size, dtype=torch.int64)), model)
    layers = {layer.name: layer for layer in result.layers}
    assert [layer.name for layer in result.layers if layer.random] == ["dropout"]
    frozen = [
        layer.name
        for layer in result.layers
        if isinstance(layer.operation, ModuleOperation) and not layer.operation.training
    ]
    assert frozen == ["norm"]
    assert result.tied == (("table.weight", "head.weight"),)
    assert layers["scale"].operation == AttributeOperation(path="scale")
    assert [b.persistent for b in layers["shift"].buffers] == [False]
    assert layers["norm"].buffer_bytes == 4 * 4 + 4 * 4 + 8
    assert not layers["tokens"].output.requires_grad  # type: ignore[union-attr]
    assert torch.equal(model.norm.running_mean, torch.zeros(4))  # type: ignore[arg-type]


def test_the_hash_is_of_the_structure_alone() -> None:
    def hash_of(width: int) -> str:
        return traced(nn.Sequential(nn.Linear(4, width), nn.ReLU()), 4).structure_sha256

    assert hash_of(3) == hash_of(3)
    assert hash_of(3) != hash_of(5)


def test_several_inputs_are_taken_by_position_or_keyword_and_defaults_stay() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
            z = self.one(x) + y
            return {"all": z} if mask is None else {"some": z * mask}

    model = Several()

    def positional(size: int) -> tuple[Tensor, Tensor]:
        return torch.ones(size, 4), torch.ones(size, 4)

    def keywords(size: int) -> dict[str, Tensor]:
        return {"x": torch.ones(size, 4), "mask": torch.ones(size, 4), "y": torch.ones(size, 4)}

    first = trace(task_of(Several, positional), model)
    assert [layer.operation.key for layer in first.layers[:2]] == [0, 1]  # type: ignore[union-attr]
    second = trace(task_of(Several, keywords), model)
    keys = [layer.operation.key for layer in second.layers if layer.is_input]  # type: ignore[union-attr]
    assert keys == ["x", "mask", "y"]
    assert [layer.name for layer in second.layers][-1] == "mul"


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


class ModeDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5, self.training)


class TwoModels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) if self.training else torch.tanh(x)


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class Packed(nn.Module):
    """Returns what no codec knows."""

    stagewright_layer = True

    def forward(self, x: Tensor) -> nn.utils.rnn.PackedSequence:
        return nn.utils.rnn.pack_sequence([x])


class Chosen(nn.Module):
    """What it returns has as many rows as the data says."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = Packed()

    def forward(self, x: Tensor) -> Any:
        rows = x[x[:, 0] > 0]
        return rows * 2, torch.relu(x).to_sparse(), rows.size(0) + 1, self.packed(x)


class ValueAsNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.item()


class WithoutGradient(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return x * 2


def test_what_depends_on_the_data_is_marked_and_does_not_change_the_models_identity() -> None:
    torch.manual_seed(0)
    first, second = (traced(Chosen(), 4) for _ in range(2))
    assert first.structure_sha256 == second.structure_sha256
    specs = {layer.name: layer.output for layer in first.layers}
    mask, rows, sparse = specs["gt"], specs["mul"], specs["to_sparse"]
    assert isinstance(mask, TensorSpec) and mask.ragged == () and mask.dtype == "bool"
    assert isinstance(rows, TensorSpec) and rows.ragged == (0,) and rows.shape[1] == 4
    assert isinstance(sparse, CooSpec) and sparse.shape == (PerSample(per_sample=1), 4)
    assert sparse.indices.ragged == (1,) and sparse.values.ragged == (0,)
    count = specs["add"]
    assert isinstance(count, NumberSpec) and count.ragged
    assert specs["packed"] == OpaqueSpec(type="torch.nn.utils.rnn.PackedSequence")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ValueAsNumber(), r"test_trace.py:\d+: layer 'item' .*from the values of tensors"),
        (WithoutGradient(), r"test_trace.py:\d+: .*under no_grad"),
        (Branching(), r"test_trace.py:\d+: cannot be traced: .*control flow.*torch.where"),
        (TwoModels(), r"test_trace.py:\d+: layer 'relu' is called differently"),
        (Constant(), r"test_trace.py:\d+: .*'table'.*register it as a buffer"),
        (nn.Sequential(nn.Linear(5, 2)), r"layer '_?0' .*fails on the example input: RuntimeError"),
        (nn.Linear(4, 4), "wrap it in nn.Sequential"),
        (nn.Sequential(nn.ReLU()).eval(), "eval mode"),
    ],
)
def test_what_cannot_be_traced_is_named_by_line(model: nn.Module, message: str) -> None:
    how = Tracing(method="fx")
    with pytest.raises(InputError, match=message) as caught:
        traced(model, 4, how=how)
    assert "\n" not in str(caught.value)


class Varied(nn.Module):
    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 4, batch_first=True)
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 1.0]))

    def forward(self, x: Tensor) -> dict[str, Any]:
        states, (hidden, _) = self.rnn(x.unsqueeze(1))
        places = torch.arange(x.size(1), device=x.device)
        masked = x.masked_fill(self.mask[: x.size(1)] == 0, float("-inf"))
        low, high = states[..., ::2].to(torch.float64).chunk(2, dim=-1)
        return {
            "all": [torch.cat([low, high], dim=-1), hidden[-1].new_zeros(x.shape) + places],
            "largest": masked.softmax(-1).max(dim=1).values,
        }


def _value(traced: TracedModel, argument: Any, inputs: list[Tensor]) -> Any:
    """Return the value of an argument: an interpreter of the layers' data, apart from the fx graph."""
    values: dict[str, Any] = {}

    def of(item: Any) -> Any:
        if isinstance(item, LayerRef):
            return values[item.name]
        if isinstance(item, SequenceArgument):
            made = [of(part) for part in item.items]
            return made if item.type == "list" else tuple(made)
        if isinstance(item, MappingArgument):
            return {key: of(part) for key, part in item.items.items()}
        if isinstance(item, SliceArgument):
            return slice(of(item.start), of(item.stop), of(item.step))
        if isinstance(item, SpecialValue):
            return ... if item.name == "ellipsis" else float(item.name)
        if isinstance(item, TorchConstant):
            kind, _, name = item.name.partition(":")
            return torch.device(name) if kind == "device" else getattr(torch, item.name)
        return item

    for layer in traced.layers:
        operation = layer.operation
        arguments = [of(item) for item in layer.arguments]
        keywords = {key: of(item) for key, item in layer.keyword_arguments.items()}
        if isinstance(operation, InputOperation):
            values[layer.name] = inputs[int(operation.key)]
        elif isinstance(operation, ModuleOperation):
            values[layer.name] = traced.model.get_submodule(operation.path)(*arguments, **keywords)
        elif isinstance(operation, AttributeOperation):
            values[layer.name] = operator.attrgetter(operation.path)(traced.model)
        elif isinstance(operation, MethodOperation):
            values[layer.name] = getattr(arguments[0], operation.name)(*arguments[1:], **keywords)
        else:
            assert isinstance(operation, FunctionOperation)
            home, _, name = operation.target.rpartition(".")
            values[layer.name] = getattr(importlib.import_module(home), name)(
                *arguments, **keywords
            )
    return of(argument)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_layers_as_data_compute_what_the_model_computes(batch_size: int) -> None:
    model = Varied()
    result = traced(model, 4)
    x = torch.randn(batch_size, 4)
    expected, found = model(x), _value(result, result.output, [x])
    assert expected.keys() == found.keys()
    for key in expected:
        for first, second in zip(tensors_in(expected[key]), tensors_in(found[key]), strict=True):
            assert torch.equal(first, second)


def test_a_literal_that_depends_on_the_mode_is_kept_for_both() -> None:
    for method in ("fx", "export"):
        layer = traced(ModeDependent(), 4, how=Tracing(method=method)).layers[-1]
        arguments = (*layer.arguments, *layer.keyword_arguments.values())
        assert ModeArgument(training=True, evaluation=False) in arguments
        assert layer.random


def test_auto_takes_export_where_fx_cannot_follow_and_names_both_where_neither_can() -> None:
    assert [n.name for n in traced(WithoutGradient(), 4).layers] == ["x", "detach", "mul"]
    with pytest.raises(InputError, match=r"control flow.*\(torch.export: .*cannot be exported"):
        traced(Branching(), 4)


def test_a_module_marked_as_layer_may_branch() -> None:
    class Opaque(Branching):
        stagewright_layer = True

    result = traced(nn.Sequential(nn.Linear(4, 4), Opaque()), 4)
    operation = result.layers[-1].operation
    assert isinstance(operation, ModuleOperation) and operation.constructor is None
