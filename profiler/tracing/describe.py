"""Descriptions as data: what a call takes (Argument) and what it returns (ValueSpec)."""

import builtins
import importlib
import math
import operator
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from stagewright.value import (
    Argument,
    CooSpec,
    MappingArgument,
    MappingSpec,
    NoneSpec,
    NumberSpec,
    OpaqueSpec,
    PerSample,
    SequenceArgument,
    SequenceSpec,
    Size,
    SliceArgument,
    SpecialValue,
    TensorSpec,
    TorchConstant,
    ValueSpec,
    VoxelsSpec,
)

from .voxels import SparseValue, engine_function_name

PUBLIC_MODULES: tuple[ModuleType, ...] = (
    functional, torch, operator, math, builtins, torch.linalg, torch.fft, torch.special,
)  # fmt: skip
"""Where a function's public name is looked for, in this order."""


class Undescribable(Exception):
    """A value that the layer graph has no words for; the message says what was found and expected."""


def argument_of(value: Any, resolve: Callable[[fx.Node], Argument]) -> Argument:
    """Return what a call receives as data.

    Args:
        resolve: gives the argument that stands for another node's value.

    Raises:
        Undescribable: the value is none that the layer graph can hold.
    """
    if isinstance(value, fx.Node):
        return resolve(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else SpecialValue(name=_special_name(value))
    if value is Ellipsis:
        return SpecialValue(name="ellipsis")
    if isinstance(value, slice):
        start, stop, step = (
            argument_of(part, resolve) for part in (value.start, value.stop, value.step)
        )
        return SliceArgument(start=start, stop=stop, step=step)
    if isinstance(value, tuple | list):
        items = tuple(argument_of(item, resolve) for item in value)
        return SequenceArgument(type="list" if isinstance(value, list) else "tuple", items=items)
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return MappingArgument(
            items={key: argument_of(item, resolve) for key, item in value.items()}
        )
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
        return TorchConstant(name=str(value).removeprefix("torch."))
    if isinstance(value, torch.device):
        return TorchConstant(name=f"device:{value.type}")
    raise Undescribable(
        f"a call receives a {type(value).__name__}; expected tensors, numbers, strings, slices, dtypes, and "
        "tuples, lists or dicts of them"
    )


def value_spec(values: Sequence[Any], batch_sizes: Sequence[int]) -> ValueSpec:
    """Return the description of a value that was observed several times, at these micro-batch sizes.

    A size that is neither fixed nor proportional to the micro-batch depends on the data (it is ragged).

    Raises:
        Undescribable: its type, its number of dimensions or its items change from one time to another.
    """
    first = values[0]
    kinds = list(dict.fromkeys(type(value).__name__ for value in values))
    if len(kinds) > 1:
        raise Undescribable(f"its type is {' or '.join(kinds)} by the micro-batch")
    if isinstance(first, torch.Tensor) and first.layout is torch.sparse_coo:
        return _coo_spec(values, batch_sizes)
    if isinstance(first, torch.Tensor):
        return _tensor_spec(values, batch_sizes)
    if isinstance(first, SparseValue):
        return _voxels_spec(values, batch_sizes)
    if first is None:
        return NoneSpec()
    if isinstance(first, bool | float):
        if any(value != first for value in values):
            found = " or ".join(dict.fromkeys(map(str, values)))
            raise Undescribable(f"it is {found} by the micro-batch")
        return NumberSpec(value=first)
    if isinstance(first, int):
        size, is_ragged = _size(values, batch_sizes)
        return NumberSpec(value=size, ragged=is_ragged)
    if _is_plain_sequence(first):
        lengths = list(dict.fromkeys(map(len, values)))
        if len(lengths) > 1:
            shown = " or ".join(map(str, lengths))
            raise Undescribable(f"it has {shown} items by the micro-batch; expected always as many")
        items = tuple(value_spec(item, batch_sizes) for item in zip(*values, strict=True))
        return SequenceSpec(type="list" if isinstance(first, list) else "tuple", items=items)
    if isinstance(first, dict) and all(map(_is_text, first)):
        if any(list(value) != list(first) for value in values):
            raise Undescribable("its keys depend on the micro-batch; expected always the same")
        return MappingSpec(
            items={key: value_spec([v[key] for v in values], batch_sizes) for key in first}
        )
    return OpaqueSpec(type=f"{type(first).__module__}.{type(first).__qualname__}")


def stored_spec(tensor: torch.Tensor) -> TensorSpec:
    """Return the description of a parameter or a buffer."""
    return TensorSpec(
        shape=tuple(tensor.shape),
        dtype=dtype_name(tensor.dtype),
        requires_grad=tensor.requires_grad,
    )


def dtype_name(dtype: torch.dtype) -> str:
    """Return torch's name of a dtype: "float32"."""
    return str(dtype).removeprefix("torch.")


def function_name(function: Callable[..., Any]) -> str:
    """Return the name that a function is imported by: "torch.flatten".

    Raises:
        Undescribable: it is no public function of torch, operator, math or builtins.
    """
    of_engine = engine_function_name(function)
    if of_engine is not None:
        return of_engine
    if isinstance(function, torch._ops.OpOverload) and function.namespace == "aten":
        return f"torch.ops.{function}"
    name = getattr(function, "__name__", "")
    for module in PUBLIC_MODULES:
        if name and getattr(module, name, None) is function:
            return f"{module.__name__}.{name}"
    home = str(getattr(function, "__module__", "") or "")
    is_public = not any(part.startswith("_") for part in home.split("."))
    if f"{home}.".startswith("torch.") and is_public:
        found = getattr(importlib.import_module(home), name, None)
        if found is function:
            return f"{home}.{name}"
    raise Undescribable(
        f"function {home}.{name} is none of torch, operator, math or builtins; "
        "write it as an nn.Module whose class has stagewright_layer = True"
    )


def _tensor_spec(values: Sequence[torch.Tensor], batch_sizes: Sequence[int]) -> TensorSpec:
    first = values[0]
    if first.layout is not torch.strided:
        raise Undescribable(
            f"it is a tensor of layout {first.layout}; expected a dense or a COO one"
        )
    shape, ragged = _shape([tuple(value.shape) for value in values], batch_sizes)
    try:
        return TensorSpec(
            shape=shape,
            dtype=dtype_name(first.dtype),
            requires_grad=first.requires_grad,
            ragged=ragged,
        )
    except ValueError as error:
        raise Undescribable(str(error)) from None


def _coo_spec(values: Sequence[torch.Tensor], batch_sizes: Sequence[int]) -> CooSpec:
    """Return the description of sparse tensors; how many entries they have depends on the data."""
    entries = [value.detach().coalesce() for value in values]
    parts = [
        entry.values().requires_grad_(value.requires_grad)
        for entry, value in zip(entries, values, strict=True)
    ]
    shape, ragged = _shape([tuple(value.shape) for value in values], batch_sizes)
    (count, *dense), _ = _shape([tuple(part.shape) for part in parts], batch_sizes)
    first = parts[0]
    return CooSpec(
        shape=shape,
        ragged=ragged,
        indices=TensorSpec(
            shape=(values[0].sparse_dim(), count), dtype="int64", requires_grad=False, ragged=(1,)
        ),
        values=TensorSpec(
            shape=(count, *dense),
            dtype=dtype_name(first.dtype),
            requires_grad=first.requires_grad,
            ragged=(
                0,
                *(1 + i - values[0].sparse_dim() for i in ragged if i >= values[0].sparse_dim()),
            ),
        ),
    )


def _voxels_spec(values: Sequence[SparseValue], batch_sizes: Sequence[int]) -> VoxelsSpec:
    """Return the description of sparse tensors; how many rows they have depends on the data."""
    shapes = [
        (value.F.shape[1], value.coordinate_size, value.key[0], value.map_layer) for value in values
    ]
    if len(set(shapes)) > 1:
        shown = " or ".join(map(str, dict.fromkeys(shapes)))
        raise Undescribable(
            f"its channels, columns of coordinates, tensor stride and layer of its map are {shown} by the "
            "micro-batch; expected always the same"
        )
    first = values[0]
    num_rows = sum(len(value.F) for value in values)
    rows = PerSample(per_sample=max(1, math.ceil(num_rows / sum(batch_sizes))))
    return VoxelsSpec(
        map=first.map_layer,
        manager=first.manager_layer,
        coordinates=TensorSpec(
            shape=(rows, first.coordinate_size), dtype="int32", requires_grad=False, ragged=(0,)
        ),
        features=TensorSpec(
            shape=(rows, first.F.shape[1]),
            dtype=dtype_name(first.F.dtype),
            requires_grad=first.F.requires_grad,
            ragged=(0,),
        ),
    )


def _shape(
    shapes: Sequence[tuple[int, ...]], batch_sizes: Sequence[int]
) -> tuple[tuple[Size, ...], tuple[int, ...]]:
    """Return the shape that was observed several times, and its ragged dimensions."""
    if len(set(map(len, shapes))) > 1:
        raise Undescribable("its number of dimensions depends on the micro-batch")
    sizes = [_size(found, batch_sizes) for found in zip(*shapes, strict=True)]
    ragged = tuple(i for i, (_, is_ragged) in enumerate(sizes) if is_ragged)
    return tuple(size for size, _ in sizes), ragged


def _size(found: Sequence[int], batch_sizes: Sequence[int]) -> tuple[Size, bool]:
    """Return a size that was observed several times, and whether it is ragged: then its mean, rounded up."""
    if len(set(found)) == 1:
        return found[0], False
    per_sample = found[0] // batch_sizes[0]
    if all(per_sample * size == f for size, f in zip(batch_sizes, found, strict=True)):
        return PerSample(per_sample=per_sample), False
    return PerSample(per_sample=math.ceil(sum(found) / sum(batch_sizes))), True


def _is_plain_sequence(value: Any) -> bool:
    """Whether a value is just a tuple or list: a named tuple of the user would lose its names."""
    module = type(value).__module__
    return isinstance(value, tuple | list) and module in ("builtins", "torch", "torch.return_types")


def _special_name(value: float) -> Any:
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
