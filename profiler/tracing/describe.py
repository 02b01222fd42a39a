"""Descriptions as data: what a call takes (Argument) and what it returns (ValueSpec)."""

import builtins
import importlib
import math
import operator
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from stagewright.value import (
    Argument,
    MappingArgument,
    MappingSpec,
    NoneSpec,
    NumberSpec,
    PerSample,
    SequenceArgument,
    SequenceSpec,
    Size,
    SliceArgument,
    SpecialValue,
    TensorSpec,
    TorchConstant,
    ValueSpec,
)

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


def value_spec(first: Any, second: Any, batch_sizes: tuple[int, int]) -> ValueSpec:
    """Return the description of a value that was observed at two micro-batch sizes.

    Raises:
        Undescribable: its sizes are neither fixed nor proportional to the micro-batch, or its type is not
            a tensor, a number, None, or a tuple, list or dict of these.
    """
    if isinstance(first, torch.Tensor):
        return _tensor_spec(first, second, batch_sizes)
    if type(first) is not type(second):
        raise Undescribable(
            f"its type is {type(first).__name__} or {type(second).__name__} by the micro-batch"
        )
    if first is None:
        return NoneSpec()
    if isinstance(first, bool) or (isinstance(first, float) and first == second):
        if first != second:
            raise Undescribable(f"it is {first} or {second} by the micro-batch")
        return NumberSpec(value=first)
    if isinstance(first, int):
        return NumberSpec(value=_size(first, second, batch_sizes))
    if isinstance(first, tuple | list) and len(first) == len(second):
        pairs = zip(first, second, strict=True)
        items = tuple(value_spec(a, b, batch_sizes) for a, b in pairs)
        return SequenceSpec(type="list" if isinstance(first, list) else "tuple", items=items)
    if isinstance(first, dict) and list(first) == list(second) and all(map(_is_text, first)):
        both = {key: value_spec(first[key], second[key], batch_sizes) for key in first}
        return MappingSpec(items=both)
    raise Undescribable(
        f"its value is a {type(first).__name__}; expected tensors, whole numbers, None, and tuples, lists or "
        "dicts of them"
    )


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


def _tensor_spec(first: torch.Tensor, second: Any, batch_sizes: tuple[int, int]) -> TensorSpec:
    if not isinstance(second, torch.Tensor) or first.dim() != second.dim():
        raise Undescribable("its number of dimensions depends on the micro-batch")
    if first.layout is not torch.strided:
        raise Undescribable(f"it is a tensor of layout {first.layout}; expected a dense one")
    pairs = zip(first.shape, second.shape, strict=True)
    try:
        return TensorSpec(
            shape=tuple(_size(a, b, batch_sizes) for a, b in pairs),
            dtype=dtype_name(first.dtype),
            requires_grad=first.requires_grad,
        )
    except ValueError as error:
        raise Undescribable(str(error)) from None


def _size(first: int, second: int, batch_sizes: tuple[int, int]) -> Size:
    if first == second:
        return first
    per_sample = first // batch_sizes[0]
    if (per_sample * batch_sizes[0], per_sample * batch_sizes[1]) == (first, second):
        return PerSample(per_sample=per_sample)
    raise Undescribable(
        f"a size is {first} at {batch_sizes[0]} samples and {second} at {batch_sizes[1]}; "
        "expected a fixed one or one proportional to the number of samples"
    )


def _special_name(value: float) -> Any:
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
