"""The codec of MinkowskiEngine's sparse tensors: coordinate maps once a unit, features by tensor.

A message has for each coordinate map that the receiving stage does not get otherwise its coordinates, with
its tensor stride and its name as notes, and for each tensor its features. The receiver has one coordinate
manager for all that comes of one manager, and every map is in it under its old key before any layer runs. So
sparse tensors of several borders can be joined, and transposed convolutions find the maps that they return
to. The rows keep their order, so gradients of features come back row by row.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from stagewright.value import VoxelsSpec

from .values import ValueMismatchError

if TYPE_CHECKING:
    from .codecs import Packer, Unpacker


class VoxelsCodec:
    """A sparse tensor, or, where the receiver takes no features, the key of its coordinates."""

    def pack(self, value: Any, spec: VoxelsSpec, packer: "Packer") -> None:
        engine = _engine()
        if not isinstance(value, engine.SparseTensor):
            raise ValueMismatchError(f"is a {type(value).__name__}, expected a SparseTensor")
        if len(value.F) == 0:
            raise ValueMismatchError("has no voxels, expected at least one in a micro-batch")
        if spec.coordinates is not None:
            stride, name = value.coordinate_map_key.get_key()
            packer.add(value.C, spec.coordinates)
            packer.note([*stride, name])
        if spec.features is not None:
            packer.add(value.F, spec.features)

    def unpack(self, spec: VoxelsSpec, unpacker: "Unpacker") -> Any:
        if spec.coordinates is not None:
            coordinates = unpacker.tensor()
            *stride, name = unpacker.note()
            self._insert(spec, unpacker, coordinates, stride, name)
        manager = unpacker.shared[VoxelsSpec, spec.manager]
        key = unpacker.shared[VoxelsSpec, spec.manager, spec.map]
        if spec.features is None:
            return key
        return _engine().SparseTensor(
            unpacker.tensor(), coordinate_map_key=key, coordinate_manager=manager
        )

    def _insert(
        self,
        spec: VoxelsSpec,
        unpacker: "Unpacker",
        coordinates: torch.Tensor,
        stride: list[int],
        name: str,
    ) -> None:
        """Put a coordinate map into the unit's manager; its rows stay in order, as they are distinct."""
        place = (VoxelsSpec, spec.manager)
        if place not in unpacker.shared:
            unpacker.shared[place] = _engine().CoordinateManager(D=coordinates.shape[1] - 1)
        key, (rows, _) = unpacker.shared[place].insert_and_map(coordinates, stride, name)
        if len(rows) != len(coordinates) or key.get_key() != (stride, name):
            raise ValueMismatchError(
                f"the coordinates of {spec.map!r} have {len(rows)} distinct rows of {len(coordinates)} "
                f"and the key {key.get_key()}, expected {(stride, name)}"
            )
        unpacker.shared[*place, spec.map] = key


def _engine() -> ModuleType:
    """Return MinkowskiEngine, which the task has imported: it made the model."""
    engine = sys.modules.get("MinkowskiEngine")
    if engine is None:
        raise ValueMismatchError("is a sparse tensor, but the task imports no MinkowskiEngine")
    return engine
