"""Calls the compiled loops: named tuples and arrays go as pointers to what lies in memory already.

The C++ structs are written from the named tuples, so that both sides have the same fields.
"""

import ctypes
from functools import cache
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray

from stagewright.optimizer.costs.cost import FloatArray, IntArray
from stagewright.optimizer.solvers.labels.arrays import SHARED, Costs

from .build import built_library

MOST_DIMENSIONS = 3
MOST_KEPT = 2
_TYPES = {int: "int64_t", bool: "int64_t", float: "double", IntArray: "Ints", FloatArray: "Floats"}
_HEADER = f"""#pragma once
#include <cstdint>

// A C-contiguous array of Python's.
template <class T>
struct Array {{
  T* data;
  int64_t shape[{MOST_DIMENSIONS}];
  T& operator[](int64_t i) const {{ return data[i]; }}
  T& operator()(int64_t i, int64_t j) const {{ return data[i * shape[1] + j]; }}
  T& operator()(int64_t i, int64_t j, int64_t k) const {{ return data[(i * shape[1] + j) * shape[2] + k]; }}
  int64_t size() const {{ return shape[0]; }}
}};
using Ints = Array<int64_t>;
using Floats = Array<double>;
"""


class _Array(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("shape", ctypes.c_int64 * MOST_DIMENSIONS)]


_C_TYPES: dict[Any, Any] = {
    int: ctypes.c_int64,
    bool: ctypes.c_int64,
    float: ctypes.c_double,
    IntArray: _Array,
    FloatArray: _Array,
}


def structs() -> str:
    """Return the text of structs.h."""
    text = _HEADER
    for kind in SHARED:
        fields = get_type_hints(kind).items()
        lines = "".join(f"  {_TYPES[of]} {name};\n" for name, of in fields)
        text += f"struct {kind.__name__} {{\n{lines}}};\n"
    return text


def call(name: str, *arguments: Any) -> int:
    """Return what a compiled function that returns a whole number does with numbers, arrays and tuples."""
    return int(_function(name, ctypes.c_int64)(*map(_passed, arguments)))


def call_for_ms(name: str, *arguments: Any) -> float:
    """Return the same of a function that returns a float."""
    return float(_function(name, ctypes.c_double)(*map(_passed, arguments)))


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(built_library(structs())))


@cache
def _function(name: str, result: Any) -> Any:
    function = _library()[name]
    function.restype = result
    return function


@cache
def _struct(kind: type) -> Any:
    fields = [(name, _C_TYPES[of]) for name, of in get_type_hints(kind).items()]
    return type(kind.__name__, (ctypes.Structure,), {"_fields_": fields})


_kept: list[tuple[Costs, Any]] = []
"""The last ones that were passed, with their structs: a search passes them again and again."""


def _passed(argument: Any) -> Any:
    """Return an argument as ctypes passes it."""
    if isinstance(argument, np.ndarray):
        return ctypes.byref(_array(argument))
    if isinstance(argument, Costs):
        return ctypes.byref(_kept_struct(argument))
    if isinstance(argument, tuple):
        return ctypes.byref(_filled(argument))
    return ctypes.c_double(argument) if isinstance(argument, float) else ctypes.c_int64(argument)


def _kept_struct(costs: Costs) -> Any:
    for known, struct in _kept:
        if known is costs:
            return struct
    struct = _filled(costs)
    _kept.append((costs, struct))
    del _kept[:-MOST_KEPT]
    return struct


def _filled(fields: tuple[Any, ...]) -> Any:
    """Return the struct of a named tuple."""
    values = (_array(f) if isinstance(f, np.ndarray) else f for f in fields)
    return _struct(type(fields))(*values)


def _array(array: NDArray[Any]) -> _Array:
    assert array.flags.c_contiguous and array.dtype.char in "ld", array.dtype
    return _Array(array.__array_interface__["data"][0], array.shape)
