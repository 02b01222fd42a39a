"""Buffers: memory to receive into, taken again as soon as nothing uses it any more.

A received tensor lives as long as a unit needs it: as a leaf of the stage's graph, saved by a layer, seen
through a view, on its way to a third rank. So no schedule has to say when a buffer is free: the memory comes
back when the last tensor that shares it is gone. As many buffers are made as the schedule has in use at once,
in its first step; later steps make none.
"""

import math
import weakref
from collections import defaultdict
from typing import Any

import numpy as np
import torch

LEAST_BYTES = 256
"""Of a buffer."""
SIZES_PER_DOUBLING = 4
"""Ragged sizes are rounded up to few different ones, so that buffers fit again: at most 1/4 is unused."""
NUMPY_DTYPES = {
    dtype: torch.empty(0, dtype=dtype).numpy().dtype
    for dtype in (
        torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool,
        torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    )
}  # fmt: skip


class BufferPool:
    """Memory of one device. On a GPU the allocator of torch keeps freed memory itself, so this asks it."""

    def __init__(self, device: torch.device, *, pinned: bool = False) -> None:
        """pinned: in host memory from which a GPU can copy; device is then the CPU."""
        self._device = device
        self._pinned = pinned
        self._free: dict[int, list[Any]] = defaultdict(list)
        self._lent: dict[int, Any] = {}
        """By a number of its own for each: what tells when the memory is free."""
        self.num_made = 0
        """Buffers that were made, not taken again."""
        self.bytes_made = 0
        """Of those; the pool never gives them back."""

    @property
    def num_in_use(self) -> int:
        return len(self._lent)

    def take(
        self, shape: tuple[int, ...], dtype: torch.dtype, *, is_ragged: bool = False
    ) -> torch.Tensor:
        """Return an uninitialised tensor; its memory is taken again when nothing refers to it.

        is_ragged: other sizes are to be expected next time, so the memory is rounded up to a common size.
        """
        if self._device.type != "cpu" or self._pinned:
            return torch.empty(shape, dtype=dtype, device=self._device, pin_memory=self._pinned)
        num_bytes = math.prod(shape) * dtype.itemsize
        size = rounded_size(num_bytes) if is_ragged else max(num_bytes, LEAST_BYTES)
        free = self._free[size]
        if free:
            memory = free.pop()
        else:
            memory = torch.empty(size, dtype=torch.uint8).numpy()
            self.num_made += 1
            self.bytes_made += size
        # torch keeps the array as long as a tensor shares its memory, and arrays take weak references. The
        # array has the tensor's shape already: views made by torch would cost several times as much.
        known = NUMPY_DTYPES.get(dtype)
        array = np.ndarray(shape if known else num_bytes, known or np.uint8, memory)
        key = id(array)

        def give_back(_: Any) -> None:
            del self._lent[key]
            free.append(memory)

        self._lent[key] = weakref.ref(array, give_back)
        tensor = torch.from_numpy(array)
        return tensor if known else tensor.view(dtype).view(shape)


def rounded_size(num_bytes: int) -> int:
    """Return the size of the buffer for some bytes: the next of SIZES_PER_DOUBLING steps per power of two."""
    if num_bytes <= LEAST_BYTES:
        return LEAST_BYTES
    step = 1 << max(0, (num_bytes - 1).bit_length() - 1)
    step = max(1, step // SIZES_PER_DOUBLING)
    return -(-num_bytes // step) * step
