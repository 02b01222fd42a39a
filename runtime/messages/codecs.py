"""Codecs: how each kind of value becomes the dense tensors and notes of a message, and a value again.

A message has the values of one border for one unit, in the order of the plan. The kind of a value's
specification chooses its codec (CODECS). A codec adds dense tensors and, for what depends on the data, notes
(numbers, strings) to the message and takes them out in the same order. Codecs of values that have a part in
common send it once (`Packer.shared`), and build on one another in the receiver's unit (`Unpacker.shared`,
over all borders of the stage). Gradients come back for the tensors that were added with one, row by row.

A new kind of value needs a specification in stagewright/value.py and a codec here.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, Protocol

import torch

from stagewright.plan import Border
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
    VoxelsSpec,
    size_at,
)

from .values import (
    Note,
    Payload,
    Precision,
    ValueMismatchError,
    check_shape,
    check_tensor,
)
from .voxels import VoxelsCodec


class Packer:
    """Makes one message of the values of a border."""

    def __init__(self, batch_size: int, precision: Precision) -> None:
        self.batch_size = batch_size
        self.precision = precision
        self.payload = Payload()
        self.shared: dict[Hashable, Any] = {}
        """What codecs note of parts that this message holds already."""

    def pack(self, value: Any, spec: ValueSpec) -> None:
        """Add a value.

        Raises:
            ValueMismatchError: it is not what its specification says.
        """
        codec_of(spec).pack(value, spec, self)

    def add(self, tensor: torch.Tensor, spec: TensorSpec) -> None:
        """Add a dense tensor.

        Raises:
            ValueMismatchError: shape or dtype differ from the specification's.
        """
        check_tensor(tensor, spec, self.batch_size, self.precision)
        self.payload.tensors.append(tensor)
        self.payload.with_gradient.append(spec.requires_grad)

    def note(self, note: Note) -> None:
        """Add what the receiver cannot know; of ragged specifications only."""
        self.payload.notes.append(note)


class Unpacker:
    """Makes values of one message again."""

    def __init__(self, payload: Payload, batch_size: int, shared: dict[Hashable, Any]) -> None:
        self.batch_size = batch_size
        self.shared = shared
        """What codecs have built for this unit so far, of all borders of the receiving stage."""
        self._tensors = iter(payload.tensors)
        self._notes = iter(payload.notes)

    def unpack(self, spec: ValueSpec) -> Any:
        """Return the next value."""
        return codec_of(spec).unpack(spec, self)

    def tensor(self) -> torch.Tensor:
        """Return the next dense tensor; if it gets a gradient, it is a leaf of the stage's graph."""
        return next(self._tensors)

    def note(self) -> Any:
        """Return the next note."""
        return next(self._notes)


class Codec(Protocol):
    """How one kind of value travels."""

    def pack(self, value: Any, spec: Any, packer: Packer) -> None:
        """Add a value's tensors and notes to a message.

        Raises:
            ValueMismatchError: the value is not what the specification says.
        """

    def unpack(self, spec: Any, unpacker: Unpacker) -> Any:
        """Take a value's tensors and notes in the order in which `pack` added them; return the value."""


class DenseCodec:
    """One dense tensor."""

    def pack(self, value: Any, spec: TensorSpec, packer: Packer) -> None:
        if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            raise ValueMismatchError(f"is a {_kind_of(value)}, expected a dense tensor")
        packer.add(value, spec)

    def unpack(self, spec: TensorSpec, unpacker: Unpacker) -> torch.Tensor:
        return unpacker.tensor()


class CooCodec:
    """Indices and values of a sparse tensor; its gradient is that of the values, entry by entry."""

    def pack(self, value: Any, spec: CooSpec, packer: Packer) -> None:
        if not isinstance(value, torch.Tensor) or value.layout is not torch.sparse_coo:
            raise ValueMismatchError(f"is a {_kind_of(value)}, expected a sparse tensor (COO)")
        check_shape(tuple(value.shape), spec.shape, spec.ragged, packer.batch_size)
        entries = value if value.is_coalesced() else value.coalesce()
        packer.add(entries.indices(), spec.indices)
        packer.add(entries.values(), spec.values)
        packer.note(list(value.shape))

    def unpack(self, spec: CooSpec, unpacker: Unpacker) -> torch.Tensor:
        indices, values = unpacker.tensor(), unpacker.tensor()
        return torch.sparse_coo_tensor(
            indices, values, unpacker.note(), is_coalesced=True, check_invariants=False
        )


class NumberCodec:
    """A number: computed from the micro-batch's size where that is possible, else noted."""

    def pack(self, value: Any, spec: NumberSpec, packer: Packer) -> None:
        if spec.ragged:
            if not isinstance(value, bool | int | float):
                raise ValueMismatchError(f"is a {_kind_of(value)}, expected a number")
            packer.note(value)

    def unpack(self, spec: NumberSpec, unpacker: Unpacker) -> bool | int | float:
        if spec.ragged:
            return unpacker.note()  # type: ignore[no-any-return]
        if isinstance(spec.value, PerSample):
            return size_at(spec.value, unpacker.batch_size)
        return spec.value


class NoneCodec:
    """None, which needs no message."""

    def pack(self, value: Any, spec: NoneSpec, packer: Packer) -> None:
        if value is not None:
            raise ValueMismatchError(f"is a {_kind_of(value)}, expected None")

    def unpack(self, spec: NoneSpec, unpacker: Unpacker) -> None:
        return None


class SequenceCodec:
    """A tuple or a list: its items in order."""

    def pack(self, value: Any, spec: SequenceSpec, packer: Packer) -> None:
        if not isinstance(value, tuple | list) or len(value) != len(spec.items):
            raise ValueMismatchError(f"is a {_kind_of(value)}, expected {len(spec.items)} items")
        for item, item_spec in zip(value, spec.items, strict=True):
            packer.pack(item, item_spec)

    def unpack(self, spec: SequenceSpec, unpacker: Unpacker) -> tuple[Any, ...] | list[Any]:
        items = [unpacker.unpack(item) for item in spec.items]
        return tuple(items) if spec.type == "tuple" else items


class MappingCodec:
    """A dict: its values in the order of the specification."""

    def pack(self, value: Any, spec: MappingSpec, packer: Packer) -> None:
        if not isinstance(value, dict) or set(value) != set(spec.items):
            raise ValueMismatchError(f"is a {_kind_of(value)}, expected keys {sorted(spec.items)}")
        for key, item_spec in spec.items.items():
            packer.pack(value[key], item_spec)

    def unpack(self, spec: MappingSpec, unpacker: Unpacker) -> dict[str, Any]:
        return {key: unpacker.unpack(item) for key, item in spec.items.items()}


class OpaqueCodec:
    """Nothing: such a value is on no border of a plan."""

    def pack(self, value: Any, spec: OpaqueSpec, packer: Packer) -> None:
        raise ValueMismatchError(f"is a {spec.type}, which cannot be sent; plan again")

    def unpack(self, spec: OpaqueSpec, unpacker: Unpacker) -> None:
        raise ValueMismatchError(f"a {spec.type} cannot be sent; plan again")


CODECS: Mapping[type, Codec] = {
    TensorSpec: DenseCodec(),
    CooSpec: CooCodec(),
    VoxelsSpec: VoxelsCodec(),
    NumberSpec: NumberCodec(),
    NoneSpec: NoneCodec(),
    SequenceSpec: SequenceCodec(),
    MappingSpec: MappingCodec(),
    OpaqueSpec: OpaqueCodec(),
}
"""By kind of specification."""


def codec_of(spec: ValueSpec) -> Codec:
    """Return the codec of a kind of value."""
    return CODECS[type(spec)]


def pack_border(
    border: Border, value_of: Callable[[str], Any], batch_size: int, precision: Precision
) -> Payload:
    """Return the message of a border.

    Args:
        border: what the plan says of it.
        value_of: from a layer's name to its value.
        batch_size: samples in the unit.
        precision: the run's.

    Raises:
        ValueMismatchError: a value is not what the plan says; names the layer.
    """
    packer = Packer(batch_size, precision)
    for value in border.values:
        try:
            packer.pack(value_of(value.layer), value.spec)
        except ValueMismatchError as error:
            raise ValueMismatchError(
                f"stage {border.source}: the value of layer {value.layer!r} {error}"
            ) from None
    return packer.payload


def unpack_border(
    border: Border, payload: Payload, batch_size: int, shared: dict[Hashable, Any]
) -> Iterator[tuple[str, Any]]:
    """Yield the layers of a border's message and their values.

    Args:
        border: what the plan says of it.
        payload: the message.
        batch_size: samples in the unit.
        shared: what codecs have built for this unit, of the stage's borders before this one.
    """
    unpacker = Unpacker(payload, batch_size, shared)
    for value in border.values:
        yield value.layer, unpacker.unpack(value.spec)


def _kind_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.layout} tensor".removeprefix("torch.")
    return type(value).__name__
