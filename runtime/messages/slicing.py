"""Slicing: how the tensors of a micro-batch are cut along one dimension, such as the tokens of a text.

A unit is a micro-batch or one slice of it. Tensors that have all positions in that dimension are cut: on
borders, in inputs and in targets; others (a vector per sample) go whole to every slice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from stagewright.document import InputError
from stagewright.plan import Border
from stagewright.value import MappingSpec, NoneSpec, SequenceSpec, TensorSpec, ValueSpec, parts_of

from .values import map_tensors


@dataclass(frozen=True)
class Slicing:
    """The slices of every micro-batch; they may be of different lengths."""

    lengths: tuple[int, ...]
    """In positions: tokens."""
    dimension: int = 1
    """Of the tensors; 0 has the samples."""

    def __post_init__(self) -> None:
        if len(self.lengths) < 2 or min(self.lengths) < 1 or self.dimension < 1:
            raise InputError(
                f"slices have the lengths {list(self.lengths)} in dimension {self.dimension}, expected two "
                "or more of at least 1, in a dimension after the samples'"
            )

    @property
    def num_slices(self) -> int:
        return len(self.lengths)

    @property
    def num_positions(self) -> int:
        """Of a whole sample."""
        return sum(self.lengths)

    def part_of(self, piece: int | None) -> float:
        """Return which part of a micro-batch's positions a unit has; None is all of it."""
        return 1.0 if piece is None else self.lengths[piece] / self.num_positions

    def cut(self, value: Any, piece: int) -> Any:
        """Return one slice's part of a tensor, or of tuples, lists and dicts of tensors."""
        return map_tensors(value, lambda tensor: self._cut_tensor(tensor, piece))

    def _cut_tensor(self, tensor: torch.Tensor, piece: int) -> torch.Tensor:
        if tensor.dim() <= self.dimension or tensor.size(self.dimension) != self.num_positions:
            return tensor
        start = sum(self.lengths[:piece])
        return tensor.narrow(self.dimension, start, self.lengths[piece]).contiguous()

    def cut_border(self, border: Border, piece: int) -> Border:
        """Return what is sent over a border for one slice.

        Raises:
            InputError: a value is more than dense tensors, so what a slice of it is cannot be said.
        """
        for value in border.values:
            for part in parts_of(value.spec):
                if not isinstance(part, TensorSpec | NoneSpec):
                    raise InputError(
                        f"stage {border.source} sends the value of layer {value.layer!r} to stage "
                        f"{border.target}, which is no dense tensor, so it cannot be cut into slices; "
                        "train without slices"
                    )
        values = (v.replace(spec=self._cut_spec(v.spec, piece)) for v in border.values)
        return border.replace(values=tuple(values))

    def _cut_spec(self, spec: ValueSpec, piece: int) -> ValueSpec:
        """Return the specification of a slice of a value."""
        if isinstance(spec, SequenceSpec):
            return spec.replace(items=tuple(self._cut_spec(item, piece) for item in spec.items))
        if isinstance(spec, MappingSpec):
            return spec.replace(items={k: self._cut_spec(v, piece) for k, v in spec.items.items()})
        if not isinstance(spec, TensorSpec) or len(spec.shape) <= self.dimension:
            return spec
        if spec.shape[self.dimension] != self.num_positions:
            return spec
        shape = list(spec.shape)
        shape[self.dimension] = self.lengths[piece]
        return spec.replace(shape=tuple(shape))


def units_of_border(border: Border, slicing: Slicing | None) -> Iterator[tuple[int | None, Border]]:
    """Yield what a border sends for a whole micro-batch (None) and, if there are some, for each slice."""
    yield None, border
    if slicing is not None:
        for piece in range(slicing.num_slices):
            yield piece, slicing.cut_border(border, piece)
