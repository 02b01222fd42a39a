"""Compiles the inner loops; the machine code is cached on disk beside the source."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Return the function as machine code, made at its first call with these argument types.

    Other threads run meanwhile.
    """
    return cast(Function, numba.njit(cache=True, nogil=True)(function))


def compiled_inside(function: Function) -> Function:
    """Return the same for a function that only compiled ones call: it compiles faster."""
    options: dict[str, Any] = {"cache": True, "no_cpython_wrapper": True}
    return cast(Function, numba.njit(**options)(function))
