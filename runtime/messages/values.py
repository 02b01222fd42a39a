"""What a message holds: dense tensors and notes, and how they are compared with the plan."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from stagewright.document import InputError
from stagewright.value import Size, TensorSpec, size_at

Scalar = None | bool | int | float | str
Note = Scalar | list[Scalar]
"""What travels beside the tensors of a ragged border."""


class ValueMismatchError(InputError):
    """A stage returned something else than its plan says."""


@dataclass(frozen=True)
class Precision:
    """The dtypes that the plan was made for and those that the run computes in."""

    planned: str
    run: str
    """Of the parameters, as is planned."""
    planned_autocast: str | None = None
    run_autocast: str | None = None
    """Of mixed precision; None: all in the parameters' dtype."""
    _found: dict[str, torch.dtype] = field(default_factory=dict, compare=False, repr=False)

    def dtype_of(self, name: str) -> torch.dtype:
        """Return the run's dtype for a dtype of the plan."""
        if name not in self._found:
            in_run = {self.planned_autocast: self.run_autocast or self.run, self.planned: self.run}
            self._found[name] = getattr(torch, in_run.get(name, name))
        return self._found[name]

    def context(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the context that a stage's forward and the loss run in."""
        if self.run_autocast is None:
            return nullcontext()
        return torch.autocast(device.type, getattr(torch, self.run_autocast))


@dataclass(slots=True)
class Payload:
    """What one message holds."""

    tensors: list[torch.Tensor] = field(default_factory=list)
    """Dense."""
    with_gradient: list[bool] = field(default_factory=list)
    """For each tensor whether a gradient comes back; the same at both ends."""
    notes: list[Note] = field(default_factory=list)

    @property
    def trained(self) -> list[torch.Tensor]:
        """The tensors that get a gradient."""
        pairs = zip(self.tensors, self.with_gradient, strict=True)
        return [tensor for tensor, has_gradient in pairs if has_gradient]

    def detached(self) -> "Payload":
        """Return the same without the autograd graph that made it."""
        tensors = [tensor.detach() for tensor in self.tensors]
        return Payload(tensors, self.with_gradient, self.notes)


@dataclass(frozen=True, slots=True)
class Part:
    """One dense tensor of a message as its receiver must know it beforehand."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    with_gradient: bool


Layout = list[Part]
"""Of one message: what its receiver needs to be ready for it."""


def layout_of(payload: Payload) -> Layout:
    """Return the layout of a message at hand."""
    pairs = zip(payload.tensors, payload.with_gradient, strict=True)
    return [Part(tuple(t.shape), t.dtype, has_gradient) for t, has_gradient in pairs]


def has_layout(payload: Payload, layout: Layout) -> bool:
    """Return whether `layout_of` a message at hand is a layout."""
    if len(payload.tensors) != len(layout):
        return False
    for tensor, has_gradient, part in zip(
        payload.tensors, payload.with_gradient, layout, strict=True
    ):
        if tensor.shape != part.shape or tensor.dtype != part.dtype:
            return False
        if has_gradient != part.with_gradient:
            return False
    return True


def planned_layout(specs: list[TensorSpec], batch_size: int, precision: Precision) -> Layout:
    """Return the layout that follows from the plan; of tensors none of which is ragged."""
    return [
        Part(spec.shape_at(batch_size), precision.dtype_of(spec.dtype), spec.requires_grad)
        for spec in specs
    ]


def map_tensors(value: Any, change: Callable[[Any], Any], kind: type = torch.Tensor) -> Any:
    """Return a value with its tensors changed: one, or tuples (lists too become some) and dicts of them.

    kind: what is changed in place of tensors.
    """
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, change, kind) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(map_tensors(item, change, kind) for item in value)
    return value


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Return the tensors of a value: of nested tuples, lists and dicts, in their order."""
    if isinstance(value, torch.Tensor):
        return [value]
    items = list(value.values()) if isinstance(value, dict) else value
    if isinstance(items, tuple | list):
        return [tensor for item in items for tensor in tensors_in(item)]
    return []


def check_tensor(
    tensor: torch.Tensor, spec: TensorSpec, batch_size: int, precision: Precision
) -> None:
    """Compare a tensor that is about to be sent with what the plan says.

    The backend would take a wrong one silently: a shorter message fills a part of the receiver's buffer.

    Raises:
        ValueMismatchError: the dtype, or the shape where it is not ragged, differs.
    """
    check_shape(tuple(tensor.shape), spec.shape, spec.ragged, batch_size)
    dtype = precision.dtype_of(spec.dtype)
    if tensor.dtype != dtype:
        raise ValueMismatchError(f"has dtype {tensor.dtype}, expected {dtype}")


def check_shape(
    found: tuple[int, ...], planned: tuple[Size, ...], ragged: tuple[int, ...], batch_size: int
) -> None:
    """Compare a shape with the plan's at a micro-batch of batch_size samples, but for ragged dimensions.

    Raises:
        ValueMismatchError: it differs.
    """
    expected = tuple(size_at(size, batch_size) for size in planned)
    if found == expected:
        return
    fixed = [i for i in range(len(expected)) if i not in ragged]
    if len(found) != len(expected) or any(found[i] != expected[i] for i in fixed):
        shown = ", ".join("any" if i in ragged else str(size) for i, size in enumerate(expected))
        raise ValueMismatchError(
            f"has shape {found} at {batch_size} samples, expected ({shown}); if a size depends on the "
            "data, profile again with an example_input that draws its values at random"
        )
