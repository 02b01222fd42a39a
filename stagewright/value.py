"""What a layer takes and what it gives: argument trees and value specifications, as data.

An Argument is what one call receives: literals, references to other layers' values, and containers of these.
A ValueSpec describes what one layer returns. Sizes that grow with the micro-batch are `PerSample`, so the
same description serves every micro-batch size, a ragged last one too. What depends on the data is marked
ragged; its size at profiling stands there as an estimate.
"""

from collections.abc import Iterator
from typing import Literal

from stagewright.document import Record

DTYPE_BYTES = {
    "bool": 1, "uint8": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex64": 8, "complex128": 16,
}  # fmt: skip
"""Bytes of one element of a tensor, by torch's name of the dtype."""

AUTOCAST_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
"""Of mixed precision: from the short name of the command lines to torch's name of the dtype."""


class PerSample(Record):
    """A size proportional to the number of samples in the micro-batch."""

    per_sample: int


Size = int | PerSample


def size_at(size: Size, batch_size: int) -> int:
    """Return a size at a micro-batch of batch_size samples."""
    return size.per_sample * batch_size if isinstance(size, PerSample) else size


class TensorSpec(Record, tag_field="kind", tag="tensor", omit_defaults=True):
    """A dense tensor."""

    shape: tuple[Size, ...]
    dtype: str
    requires_grad: bool
    """Whether a gradient flows back through it."""
    ragged: tuple[int, ...] = ()
    """The dimensions whose size depends on the data, rising; shape has an estimate there."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise ValueError(f"dtype is {self.dtype!r}, expected one of {', '.join(DTYPE_BYTES)}")
        _demand_dimensions(self.ragged, len(self.shape))

    def shape_at(self, batch_size: int) -> tuple[int, ...]:
        """Return the shape at a micro-batch of batch_size samples, estimated where it is ragged."""
        return tuple(size_at(size, batch_size) for size in self.shape)

    def bytes_at(self, batch_size: int) -> int:
        """Return the bytes of the elements at a micro-batch of batch_size samples, estimated where ragged."""
        count = 1
        for size in self.shape_at(batch_size):
            count *= size
        return count * DTYPE_BYTES[self.dtype]


class NumberSpec(Record, tag_field="kind", tag="number", omit_defaults=True):
    """A Python number that depends on nothing but the micro-batch size, such as x.size(0)."""

    value: Size | float | bool
    ragged: bool = False
    """Whether it is the size of something ragged; value is then an estimate."""


class CooSpec(Record, tag_field="kind", tag="coo", omit_defaults=True):
    """A sparse tensor in coordinate format, coalesced. It travels as its indices and its values."""

    shape: tuple[Size, ...]
    """Of the whole tensor: sparse dimensions, then dense ones."""
    indices: TensorSpec
    """(sparse dimensions, entries)."""
    values: TensorSpec
    """(entries, *dense sizes)."""
    ragged: tuple[int, ...] = ()
    """The dimensions of the whole tensor whose size depends on the data, rising."""

    def __post_init__(self) -> None:
        _demand_dimensions(self.ragged, len(self.shape))


class VoxelsSpec(Record, tag_field="kind", tag="voxels"):
    """A sparse tensor of MinkowskiEngine: a row of features for each row of a coordinate map."""

    map: str
    """The layer that makes the coordinate map; values in the rows of one map name the same layer."""
    manager: str
    """The layer that makes the coordinate manager: maps of one manager are related."""
    coordinates: TensorSpec | None
    """(rows, 1 + dimensions); None on a border: another value that the stage receives brings the map."""
    features: TensorSpec | None
    """(rows, channels); None on a border: the stage takes the coordinates only."""


class OpaqueSpec(Record, tag_field="kind", tag="opaque"):
    """A value that cannot be sent: all that take it must be in the stage that makes it."""

    type: str
    """Its class, for people: "torch.nn.utils.rnn.PackedSequence"."""


class NoneSpec(Record, tag_field="kind", tag="none"):
    """None."""


class SequenceSpec(Record, tag_field="kind", tag="sequence"):
    """A tuple or a list."""

    type: Literal["tuple", "list"]
    items: tuple["ValueSpec", ...]


class MappingSpec(Record, tag_field="kind", tag="mapping"):
    """A dict with string keys."""

    items: dict[str, "ValueSpec"]


ValueSpec = (
    TensorSpec | NumberSpec | NoneSpec | CooSpec | VoxelsSpec | OpaqueSpec | SequenceSpec | MappingSpec
)  # fmt: skip


def parts_of(spec: ValueSpec) -> Iterator[ValueSpec]:
    """Yield what a value consists of where tuples, lists and dicts are opened, depth first, in order."""
    if isinstance(spec, SequenceSpec):
        for item in spec.items:
            yield from parts_of(item)
    elif isinstance(spec, MappingSpec):
        for item in spec.items.values():
            yield from parts_of(item)
    else:
        yield spec


def tensors_of(spec: ValueSpec) -> Iterator[TensorSpec]:
    """Yield the dense tensors that a value is made of and that a message with it carries, in order."""
    for part in parts_of(spec):
        if isinstance(part, TensorSpec):
            yield part
        elif isinstance(part, CooSpec):
            yield part.indices
            yield part.values
        elif isinstance(part, VoxelsSpec):
            yield from (
                tensor for tensor in (part.coordinates, part.features) if tensor is not None
            )


def is_ragged(spec: ValueSpec) -> bool:
    """Return whether anything of a value depends on the data, so that its receiver must be told of it."""
    return any(
        bool(part.ragged)
        if isinstance(part, TensorSpec | NumberSpec)
        else isinstance(part, CooSpec | VoxelsSpec)
        for part in parts_of(spec)
    )


def without_estimates(spec: ValueSpec) -> ValueSpec:
    """Return a specification with zeros where sizes depend on the data: the same for every profile."""
    if isinstance(spec, TensorSpec):
        return spec.replace(shape=_zeros_at(spec.shape, spec.ragged))
    if isinstance(spec, NumberSpec):
        return spec.replace(value=0) if spec.ragged else spec
    if isinstance(spec, CooSpec):
        indices, values = (
            s.replace(shape=_zeros_at(s.shape, s.ragged)) for s in (spec.indices, spec.values)
        )
        shape = _zeros_at(spec.shape, spec.ragged)
        return spec.replace(shape=shape, indices=indices, values=values)
    if isinstance(spec, VoxelsSpec):
        found, features = (
            None if s is None else s.replace(shape=_zeros_at(s.shape, s.ragged))
            for s in (spec.coordinates, spec.features)
        )
        return spec.replace(coordinates=found, features=features)
    if isinstance(spec, SequenceSpec):
        return spec.replace(items=tuple(map(without_estimates, spec.items)))
    if isinstance(spec, MappingSpec):
        return spec.replace(items={key: without_estimates(i) for key, i in spec.items.items()})
    return spec


def _zeros_at(shape: tuple[Size, ...], dimensions: tuple[int, ...]) -> tuple[Size, ...]:
    return tuple(0 if i in dimensions else size for i, size in enumerate(shape))


def _demand_dimensions(ragged: tuple[int, ...], count: int) -> None:
    if list(ragged) != sorted(set(ragged)) or any(not 0 <= i < count for i in ragged):
        raise ValueError(f"ragged is {list(ragged)}, expected rising dimensions below {count}")


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


class ModeArgument(Record, tag_field="kind", tag="by_mode"):
    """A literal that depends on the mode, as in dropout(x, 0.1, training=self.training)."""

    training: bool | int | float | str | None
    evaluation: bool | int | float | str | None


Argument = (
    None | bool | int | float | str
    | LayerRef | SequenceArgument | MappingArgument | SliceArgument | TorchConstant | SpecialValue
    | ModeArgument
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
