"""Codecs: every value comes out of its message as it went in, and gradients come back entry by entry."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stagewright.plan import Border, NamedValue
from stagewright.runtime.messages.codecs import pack_border, unpack_border
from stagewright.runtime.messages.values import Payload, Precision, ValueMismatchError
from stagewright.value import (
    CooSpec,
    MappingSpec,
    NoneSpec,
    NumberSpec,
    OpaqueSpec,
    PerSample,
    SequenceSpec,
    TensorSpec,
    ValueSpec,
    is_ragged,
)

BATCH = 3
FLOAT = Precision("float32", "float32")
DTYPES = ("float32", "float64", "bfloat16", "int64", "uint8", "bool", "complex64")
Case = tuple[ValueSpec, Any]


@st.composite
def tensors(draw: st.DrawFn) -> Case:
    dtype = draw(st.sampled_from(DTYPES))
    planned = draw(st.lists(st.integers(0, 3) | st.just(PerSample(per_sample=2)), max_size=3))
    ragged = draw(st.sets(st.integers(0, len(planned) - 1))) if planned else set()
    shape = [2 * BATCH if isinstance(size, PerSample) else size for size in planned]
    for dimension in ragged:
        shape[dimension] = draw(st.integers(0, 4))
    trained = dtype in ("float32", "float64", "bfloat16") and draw(st.booleans())
    spec = TensorSpec(
        shape=tuple(planned), dtype=dtype, requires_grad=trained, ragged=tuple(sorted(ragged))
    )
    return spec, (torch.randn(shape) * 3).to(getattr(torch, dtype))


@st.composite
def sparse(draw: st.DrawFn) -> Case:
    rows, dense = draw(st.integers(0, 4)), draw(st.lists(st.integers(1, 2), max_size=1))
    count = draw(st.integers(0, 5)) if rows else 0
    indices = torch.stack([torch.randint(0, max(rows, 1), (count,)), torch.randint(0, 2, (count,))])
    entries = torch.randn(count, *dense)
    size = (rows, 2, *dense)
    value = torch.sparse_coo_tensor(indices, entries, size, check_invariants=False)
    if draw(st.booleans()):
        value = value.coalesce()
    spec = CooSpec(
        shape=(9, 2, *dense),
        ragged=(0,),
        indices=TensorSpec(shape=(2, 7), dtype="int64", requires_grad=False, ragged=(1,)),
        values=TensorSpec(shape=(7, *dense), dtype="float32", requires_grad=True, ragged=(0,)),
    )
    return spec, value


def numbers() -> st.SearchStrategy[Case]:
    known: st.SearchStrategy[Any] = st.sampled_from([3, 2.5, True, PerSample(per_sample=4)])
    fixed = known.map(lambda v: (NumberSpec(value=v), 4 * BATCH if isinstance(v, PerSample) else v))
    noted = st.sampled_from([7, 0.5, False, -(2**40)]).map(
        lambda v: (NumberSpec(value=1, ragged=True), v)
    )
    return fixed | noted


def inside(parts: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    lists = st.lists(parts, max_size=3)

    def sequence(kind: Any, cases: list[Case]) -> Case:
        spec = SequenceSpec(type=kind, items=tuple(spec for spec, _ in cases))
        values = [value for _, value in cases]
        return spec, tuple(values) if kind == "tuple" else values

    def mapping(cases: dict[str, Case]) -> Case:
        spec = MappingSpec(items={key: spec for key, (spec, _) in cases.items()})
        return spec, {key: value for key, (_, value) in cases.items()}

    names = st.sampled_from(["a", "b", "c"])
    return (
        lists.map(lambda cases: sequence("tuple", cases))
        | lists.map(lambda cases: sequence("list", cases))
        | st.dictionaries(names, parts, max_size=3).map(mapping)
    )


cases = st.recursive(
    tensors() | sparse() | numbers() | st.just((NoneSpec(), None)), inside, max_leaves=5
)


def border_of(*specs: ValueSpec) -> Border:
    values = tuple(NamedValue(layer=f"v{i}", spec=spec) for i, spec in enumerate(specs))
    return Border(source=0, target=1, values=values)


def round_trip(border: Border, values: dict[str, Any]) -> tuple[Payload, dict[str, Any]]:
    payload = pack_border(border, values.__getitem__, BATCH, FLOAT)
    copy = Payload(
        [tensor.detach().clone() for tensor in payload.tensors],
        payload.with_gradient,
        payload.notes,
    )
    return payload, dict(unpack_border(border, copy, BATCH, {}))


def assert_equal(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert found.layout == expected.layout
        dense = (t.to_dense() if t.layout is torch.sparse_coo else t for t in (found, expected))
        assert torch.equal(*dense)
    elif isinstance(expected, tuple | list):
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, item in expected.items():
            assert_equal(found[key], item)
    else:
        assert found == expected


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(cases, min_size=1, max_size=3))
def test_every_value_comes_out_as_it_went_in(parts: list[Case]) -> None:
    border = border_of(*(spec for spec, _ in parts))
    values = {f"v{i}": value for i, (_, value) in enumerate(parts)}
    payload, found = round_trip(border, values)
    for name, value in values.items():
        assert_equal(found[name], value)
    assert any(map(is_ragged, (spec for spec, _ in parts))) or not payload.notes
    assert border.carries_gradient == any(payload.with_gradient)


def test_a_sparse_tensors_gradient_comes_back_entry_by_entry() -> None:
    indices = torch.tensor([[0, 2, 0], [1, 0, 1]])  # (0, 1) twice
    entries = torch.randn(3, dtype=torch.float64, requires_grad=True)
    value = torch.sparse_coo_tensor(indices, entries, (3, 2), check_invariants=True)
    other = torch.randn(2, 4, dtype=torch.float64)
    (expected,) = torch.autograd.grad(torch.sparse.mm(value, other).square().sum(), [entries])
    part = TensorSpec(shape=(1,), dtype="float64", requires_grad=True, ragged=(0,))
    spec = CooSpec(
        shape=(3, 2),
        indices=TensorSpec(shape=(2, 1), dtype="int64", requires_grad=False, ragged=(1,)),
        values=part,
    )
    border = border_of(spec)
    sent = pack_border(
        border,
        lambda _: torch.sparse_coo_tensor(indices, entries, (3, 2), check_invariants=True),
        3,
        FLOAT,
    )
    arrived = sent.detached()
    (leaf,) = arrived.trained
    leaf.requires_grad_()
    ((_, received),) = unpack_border(border, arrived, 3, {})
    torch.sparse.mm(received, other).square().sum().backward()
    torch.autograd.backward(sent.trained, [leaf.grad])
    assert torch.allclose(entries.grad, expected, rtol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "value", "message"),
    [
        (
            TensorSpec(shape=(PerSample(per_sample=1), 2), dtype="float32", requires_grad=False),
            torch.zeros(2, 2),
            r"layer 'v0' has shape \(2, 2\) at 3 samples, expected \(3, 2\)",
        ),
        (
            TensorSpec(shape=(3, 2), dtype="float32", requires_grad=False, ragged=(0,)),
            torch.zeros(2, 3),
            r"has shape \(2, 3\) at 3 samples, expected \(any, 2\)",
        ),
        (
            TensorSpec(shape=(3,), dtype="float32", requires_grad=False, ragged=(0,)),
            torch.zeros(2, 3),
            r"has shape \(2, 3\)",
        ),
        (
            TensorSpec(shape=(3,), dtype="int64", requires_grad=False),
            torch.zeros(3),
            "has dtype torch.float32, expected torch.int64",
        ),
        (TensorSpec(shape=(), dtype="int64", requires_grad=False), 3, "is a int, expected a dense"),
        (NoneSpec(), torch.zeros(1), "is a strided tensor, expected None"),
        (SequenceSpec(type="tuple", items=()), (1,), "is a tuple, expected 0 items"),
        (MappingSpec(items={"a": NoneSpec()}), {"b": None}, "expected keys"),
        (OpaqueSpec(type="a.B"), object(), "is a a.B, which cannot be sent"),
    ],
)
def test_what_is_not_as_planned_is_refused_by_the_sender(
    spec: ValueSpec, value: Any, message: str
) -> None:
    with pytest.raises(ValueMismatchError, match=message):
        pack_border(border_of(spec), lambda _: value, BATCH, FLOAT)
