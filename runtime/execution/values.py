"""Values that cross a border: their tensors, plus what their specification tells."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from stagewright.value import (
    MappingSpec,
    NoneSpec,
    NumberSpec,
    PerSample,
    SequenceSpec,
    TensorSpec,
    ValueSpec,
    size_at,
)


class ValueMismatchError(Exception):
    """A stage returned something else than its plan says."""


@dataclass(frozen=True)
class Precision:
    """The dtype that the plan was made for and the one that the run computes in."""

    planned: str
    run: str

    def dtype_of(self, name: str) -> torch.dtype:
        """Return the run's dtype for a dtype of the plan."""
        return getattr(torch, self.run if name == self.planned else name)  # type: ignore[no-any-return]


def flatten(value: Any, spec: ValueSpec) -> Iterator[torch.Tensor]:
    """Yield the tensors of a value in the order of its specification.

    Raises:
        ValueMismatchError: the value has another structure.
    """
    if isinstance(spec, TensorSpec):
        if not isinstance(value, torch.Tensor):
            raise ValueMismatchError(f"is a {type(value).__name__}, expected a tensor")
        yield value
    elif isinstance(spec, SequenceSpec):
        if not isinstance(value, tuple | list) or len(value) != len(spec.items):
            raise ValueMismatchError(
                f"is a {type(value).__name__}, expected {len(spec.items)} items"
            )
        for item, item_spec in zip(value, spec.items, strict=True):
            yield from flatten(item, item_spec)
    elif isinstance(spec, MappingSpec):
        if not isinstance(value, dict) or set(value) != set(spec.items):
            raise ValueMismatchError(
                f"is a {type(value).__name__}, expected keys {sorted(spec.items)}"
            )
        for key, item_spec in spec.items.items():
            yield from flatten(value[key], item_spec)


def unflatten(spec: ValueSpec, tensors: Iterator[torch.Tensor], batch_size: int) -> Any:
    """Return the value that a specification and its tensors make at a micro-batch of batch_size samples."""
    if isinstance(spec, TensorSpec):
        return next(tensors)
    if isinstance(spec, NumberSpec):
        if isinstance(spec.value, PerSample):
            return size_at(spec.value, batch_size)
        return spec.value
    if isinstance(spec, NoneSpec):
        return None
    if isinstance(spec, SequenceSpec):
        items = [unflatten(item, tensors, batch_size) for item in spec.items]
        return tuple(items) if spec.type == "tuple" else items
    return {key: unflatten(item, tensors, batch_size) for key, item in spec.items.items()}


def empty_like_spec(
    spec: TensorSpec, batch_size: int, precision: Precision, device: torch.device
) -> torch.Tensor:
    """Return an uninitialised tensor to receive into."""
    return torch.empty(
        spec.shape_at(batch_size), dtype=precision.dtype_of(spec.dtype), device=device
    )


def check_tensor(
    tensor: torch.Tensor, spec: TensorSpec, batch_size: int, precision: Precision
) -> None:
    """Compare a tensor that is about to be sent with what the receiver expects.

    The backend would take a wrong one silently: a shorter message fills a part of the receiver's buffer.

    Raises:
        ValueMismatchError: shape or dtype differ.
    """
    shape, dtype = spec.shape_at(batch_size), precision.dtype_of(spec.dtype)
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ValueMismatchError(
            f"has shape {tuple(tensor.shape)} and dtype {tensor.dtype}, expected {shape} and {dtype}"
        )
