"""What a layer takes and what it gives: argument trees and value specifications, as data.

An Argument is what one call receives: literals, references to other layers' values, and containers of these.
A ValueSpec describes what one layer returns. Sizes that grow with the micro-batch are `PerSample`, so the
same description serves every micro-batch size, a ragged last one too.
"""

from collections.abc import Iterator
from typing import Literal

from stagewright.document import Record

DTYPE_BYTES = {
    "bool": 1, "uint8": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex64": 8, "complex128": 16,
}  # fmt: skip
"""Bytes of one element of a tensor, by torch's name of the dtype."""


class PerSample(Record):
    """A size proportional to the number of samples in the micro-batch."""

    per_sample: int


Size = int | PerSample


def size_at(size: Size, batch_size: int) -> int:
    """Return a size at a micro-batch of batch_size samples."""
    return size.per_sample * batch_size if isinstance(size, PerSample) else size


class TensorSpec(Record, tag_field="kind", tag="tensor"):
    """A dense tensor."""

    shape: tuple[Size, ...]
    dtype: str
    requires_grad: bool
    """Whether a gradient flows back through it."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise ValueError(f"dtype is {self.dtype!r}, expected one of {', '.join(DTYPE_BYTES)}")

    def shape_at(self, batch_size: int) -> tuple[int, ...]:
        """Return the shape at a micro-batch of batch_size samples."""
        return tuple(size_at(size, batch_size) for size in self.shape)

    def bytes_at(self, batch_size: int) -> int:
        """Return the bytes of the elements at a micro-batch of batch_size samples."""
        count = 1
        for size in self.shape_at(batch_size):
            count *= size
        return count * DTYPE_BYTES[self.dtype]


class NumberSpec(Record, tag_field="kind", tag="number"):
    """A Python number that depends on nothing but the micro-batch size, such as x.size(0)."""

    value: Size | float | bool


class NoneSpec(Record, tag_field="kind", tag="none"):
    """None."""


class SequenceSpec(Record, tag_field="kind", tag="sequence"):
    """A tuple or a list."""

    type: Literal["tuple", "list"]
    items: tuple["ValueSpec", ...]


class MappingSpec(Record, tag_field="kind", tag="mapping"):
    """A dict with string keys."""

    items: dict[str, "ValueSpec"]


ValueSpec = TensorSpec | NumberSpec | NoneSpec | SequenceSpec | MappingSpec


def tensors_of(spec: ValueSpec) -> Iterator[TensorSpec]:
    """Yield the tensors of a value, depth first, in order."""
    if isinstance(spec, TensorSpec):
        yield spec
    elif isinstance(spec, SequenceSpec):
        for item in spec.items:
            yield from tensors_of(item)
    elif isinstance(spec, MappingSpec):
        for item in spec.items.values():
            yield from tensors_of(item)


class LayerRef(Record, tag_field="kind", tag="layer"):
    """The value of another layer."""

    name: str


class SequenceArgument(Record, tag_field="kind", tag="sequence"):
    """A tuple or a list of arguments."""

    type: Literal["tuple", "list"]
    items: tuple["Argument", ...]


class MappingArgument(Record, tag_field="kind", tag="mapping"):
    """A dict of arguments with string keys."""

    items: dict[str, "Argument"]


class SliceArgument(Record, tag_field="kind", tag="slice"):
    """slice(start, stop, step)."""

    start: "Argument"
    stop: "Argument"
    step: "Argument"


class TorchConstant(Record, tag_field="kind", tag="torch"):
    """One of torch's own constants: a dtype, a memory format, a layout, or a device type."""

    name: str
    """As in "float32", "channels_last", "strided", or "device:cpu"."""


class SpecialValue(Record, tag_field="kind", tag="special"):
    """A literal that JSON cannot hold."""

    name: Literal["inf", "-inf", "nan", "ellipsis"]


Argument = (
    None | bool | int | float | str
    | LayerRef | SequenceArgument | MappingArgument | SliceArgument | TorchConstant | SpecialValue
)  # fmt: skip


def references_of(argument: Argument) -> Iterator[str]:
    """Yield the names of the layers that an argument refers to, depth first, in order, with repeats."""
    if isinstance(argument, LayerRef):
        yield argument.name
    elif isinstance(argument, SequenceArgument):
        for item in argument.items:
            yield from references_of(item)
    elif isinstance(argument, MappingArgument):
        for item in argument.items.values():
            yield from references_of(item)
    elif isinstance(argument, SliceArgument):
        for item in (argument.start, argument.stop, argument.step):
            yield from references_of(item)
