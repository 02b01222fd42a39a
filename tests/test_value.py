"""Values: sizes at any micro-batch size, order of tensors and references, and JSON without loss."""

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stagewright.value import (
    DTYPE_BYTES,
    Argument,
    CooSpec,
    LayerRef,
    MappingArgument,
    MappingSpec,
    NoneSpec,
    NumberSpec,
    OpaqueSpec,
    PerSample,
    SequenceArgument,
    SequenceSpec,
    SliceArgument,
    SpecialValue,
    TensorSpec,
    TorchConstant,
    ValueSpec,
    is_ragged,
    references_of,
    tensors_of,
    without_estimates,
)

names = st.text(max_size=5)
sizes = st.integers(0, 9) | st.builds(PerSample, per_sample=st.integers(1, 9))
tensors = st.builds(
    TensorSpec,
    shape=st.lists(sizes, max_size=4).map(tuple),
    dtype=st.sampled_from(sorted(DTYPE_BYTES)),
    requires_grad=st.booleans(),
)
floats = st.floats(allow_nan=False, allow_infinity=False)
ragged_tensors = tensors.map(lambda spec: spec.replace(ragged=tuple(range(len(spec.shape)))[::2]))
numbers = st.builds(NumberSpec, value=sizes | floats | st.booleans(), ragged=st.booleans())
sparse = st.builds(
    CooSpec,
    shape=st.tuples(sizes, sizes),
    indices=ragged_tensors,
    values=ragged_tensors,
    ragged=st.sampled_from([(), (0,), (0, 1)]),
)
specs: st.SearchStrategy[ValueSpec] = st.recursive(
    tensors
    | ragged_tensors
    | st.builds(NoneSpec)
    | numbers
    | sparse
    | st.builds(OpaqueSpec, type=names),
    lambda inner: (
        st.builds(
            SequenceSpec,
            type=st.sampled_from(["tuple", "list"]),
            items=st.lists(inner, max_size=3).map(tuple),
        )
        | st.builds(MappingSpec, items=st.dictionaries(names, inner, max_size=3))
    ),
    max_leaves=6,
)
arguments: st.SearchStrategy[Argument] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | floats
    | names
    | st.builds(LayerRef, name=names)
    | st.builds(TorchConstant, name=names)
    | st.builds(SpecialValue, name=st.sampled_from(["inf", "-inf", "nan", "ellipsis"])),
    lambda inner: (
        st.builds(
            SequenceArgument,
            type=st.sampled_from(["tuple", "list"]),
            items=st.lists(inner, max_size=3).map(tuple),
        )
        | st.builds(MappingArgument, items=st.dictionaries(names, inner, max_size=3))
        | st.builds(SliceArgument, start=inner, stop=inner, step=inner)
    ),
    max_leaves=6,
)


@given(specs)
def test_a_specification_goes_through_json_without_loss(spec: ValueSpec) -> None:
    content = msgspec.json.decode(msgspec.json.encode(spec))
    again = msgspec.convert(content, ValueSpec)
    assert again == spec
    assert repr(again) == repr(spec)  # 1, 1.0 and True are equal but print differently


@given(arguments)
def test_an_argument_goes_through_json_without_loss(argument: Argument) -> None:
    content = msgspec.json.decode(msgspec.json.encode(argument))
    again = msgspec.convert(content, Argument)
    assert again == argument
    assert repr(again) == repr(argument)


@pytest.mark.parametrize("dtype", sorted(DTYPE_BYTES))
def test_bytes_are_those_of_a_tensor(dtype: str) -> None:
    spec = TensorSpec(shape=(PerSample(per_sample=2), 3), dtype=dtype, requires_grad=False)
    tensor = torch.zeros(10, 3, dtype=getattr(torch, dtype))
    assert spec.shape_at(5) == tuple(tensor.shape)
    assert spec.bytes_at(5) == tensor.nbytes


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="dtype is 'float31', expected one of bool"):
        TensorSpec(shape=(), dtype="float31", requires_grad=False)


def test_tensors_and_references_come_depth_first_in_order() -> None:
    one, two, three = (TensorSpec(shape=(n,), dtype="int8", requires_grad=False) for n in (1, 2, 3))
    inner = MappingSpec(items={"z": two, "a": NoneSpec()})
    spec = SequenceSpec(type="list", items=(one, inner, NumberSpec(value=4), three))
    assert list(tensors_of(spec)) == [one, two, three]
    a, b = LayerRef(name="a"), LayerRef(name="b")
    argument = SequenceArgument(
        type="tuple",
        items=(b, SliceArgument(start=None, stop=a, step=b), MappingArgument(items={"x": a}), "b"),
    )
    assert list(references_of(argument)) == ["b", "a", "b", "a"]


@given(specs)
def test_without_estimates_only_what_depends_on_the_data_changes(spec: ValueSpec) -> None:
    bare = without_estimates(spec)
    assert is_ragged(bare) == is_ragged(spec)
    assert without_estimates(bare) == bare
    if not is_ragged(spec):
        assert bare == spec
    for before, after in zip(tensors_of(spec), tensors_of(bare), strict=True):
        for dimension, (a, b) in enumerate(zip(before.shape, after.shape, strict=True)):
            assert b == (0 if dimension in before.ragged else a)


@pytest.mark.parametrize("ragged", [(2,), (1, 0), (0, 0), (-1,)])
def test_ragged_dimensions_are_dimensions_in_order(ragged: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected rising dimensions below 2"):
        TensorSpec(shape=(3, 4), dtype="int8", requires_grad=False, ragged=ragged)
