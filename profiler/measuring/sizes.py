"""How large layers' values are where that depends on the data: means and spreads over micro-batches."""

from collections import defaultdict
from collections.abc import Sequence, Set
from typing import Any

import numpy as np

from stagewright.graph import LayerNode
from stagewright.profiler.tracing.voxels import is_sparse
from stagewright.value import PerSample, ValueSpec, VoxelsSpec, is_ragged, tensors_of


class OutputSizes:
    """What was seen of the values of each layer at one micro-batch size."""

    def __init__(self, layers: Sequence[LayerNode], batch_size: int) -> None:
        self._layers = layers
        self._batch_size = batch_size
        self._rows: dict[int, list[int]] = defaultdict(list)
        """Of sparse tensors, by the layer's place: the rows in each micro-batch."""

    def see(self, place: int, value: Any) -> None:
        """Note the size of a layer's value."""
        if is_sparse(value):
            self._rows[place].append(len(value.F))

    @property
    def sparse_places(self) -> Set[int]:
        """The places of the layers whose values are sparse."""
        return self._rows.keys()

    def mean_bytes(self, place: int) -> int:
        """Return the bytes of a layer's value, in the mean over the micro-batches.

        Coordinates count at the layer that makes their map.
        """
        layer = self._layers[place]
        assert layer.output is not None
        if place not in self._rows:
            return sum(tensor.bytes_at(self._batch_size) for tensor in tensors_of(layer.output))
        return round(float(np.mean(self._rows[place])) * self._bytes_per_row(layer))

    def spread_bytes(self, place: int) -> int | None:
        """Return the standard deviation of the bytes of a sparse layer's value; None: it has none."""
        if place not in self._rows:
            return None
        return round(float(np.std(self._rows[place])) * self._bytes_per_row(self._layers[place]))

    def specs(self) -> dict[str, ValueSpec]:
        """Return what each sparse layer returns, with the measured rows in place of the traced ones."""
        found: dict[str, ValueSpec] = {}
        for place, rows in self._rows.items():
            layer = self._layers[place]
            per_sample = max(1, round(float(np.mean(rows)) / self._batch_size))
            found[layer.name] = _with_rows(layer.output, per_sample)
        return found

    def _bytes_per_row(self, layer: LayerNode) -> int:
        spec = layer.output
        assert isinstance(spec, VoxelsSpec) and is_ragged(spec)
        one = _with_rows(spec, 1)
        parts = [one.features] + ([one.coordinates] if spec.map == layer.name else [])
        return sum(part.bytes_at(1) for part in parts if part is not None)


def _with_rows(spec: ValueSpec | None, rows_per_sample: int) -> VoxelsSpec:
    """Return a sparse tensor's specification with another estimate of its rows."""
    assert isinstance(spec, VoxelsSpec)
    rows = PerSample(per_sample=rows_per_sample)
    coordinates, features = (
        None if part is None else part.replace(shape=(rows, *part.shape[1:]))
        for part in (spec.coordinates, spec.features)
    )
    return spec.replace(coordinates=coordinates, features=features)
