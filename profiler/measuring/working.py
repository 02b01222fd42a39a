"""Working memory: what a layer holds in its forward or backward beyond what it and earlier layers saved.

That is the workspace of kernels, temporaries, values that are still to be used but not saved, and gradients
on their way. A walk is watched by a meter of allocated memory; of each layer's peak, what autograd keeps of
the layers up to it is taken off.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import TracebackType
from typing import Any, Protocol

import torch
from torch.profiler import record_function

from stagewright.profiler.tracing.observe import tensors_in

from .clock import Meter
from .step import LOSS, Batch, Readings, Walk

_MARK = "stagewright moment "
"""Name of the events that stand for moments, with their number."""
_SILENT = "99"
"""Log level of the library behind torch.profiler, which else writes its stages to standard error."""


@dataclass(frozen=True)
class Peak:
    """The most bytes that were allocated in some spans, above what was at the meter's start."""

    num_bytes: int

    def __add__(self, other: "Peak") -> "Peak":
        """Return the peak of both their spans."""
        return self if self.num_bytes >= other.num_bytes else other


class PeakMeter(Meter[Peak], Protocol):
    """A meter of allocated memory; its moments follow one another, and are read while it is entered."""

    def __enter__(self) -> "PeakMeter": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class CpuPeakMeter:
    """Watches the CPU's allocations through torch.profiler, which sees those inside kernels, too."""

    def __init__(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", _SILENT)
        self._profile: Any = torch.autograd.profiler.profile(profile_memory=True)
        self._num_moments = 0
        self._peaks: list[int] = []
        """From each moment to the next."""

    def __enter__(self) -> "CpuPeakMeter":
        self._profile.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._profile.kineto_results is None:
            self._profile.__exit__(kind, error, trace)

    def now(self) -> int:
        """Return the moment's number."""
        self._num_moments += 1
        with record_function(f"{_MARK}{self._num_moments - 1}"):
            return self._num_moments - 1

    def settle(self) -> None:
        """End watching, and read what was seen."""
        self._profile.__exit__(None, None, None)
        results = self._profile.kineto_results
        assert results is not None
        cpu = torch._C._autograd.DeviceType.CPU
        held = 0
        for event in sorted(results.events(), key=lambda event: event.start_ns()):
            if event.name().startswith(_MARK):
                self._peaks.append(held)
            elif event.name() == "[memory]" and event.device_type() == cpu:
                held += event.nbytes()
                if self._peaks:
                    self._peaks[-1] = max(self._peaks[-1], held)
        assert len(self._peaks) == self._num_moments

    def between(self, first: int, second: int) -> Peak:
        return Peak(max(self._peaks[first:second]))


class CudaPeakMeter:
    """Asks a GPU's allocator; reading a moment starts its peak anew."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._base_bytes = 0
        self._peaks: list[int] = []
        """Up to each moment, from the one before."""

    def __enter__(self) -> "CudaPeakMeter":
        self._base_bytes = torch.cuda.memory_allocated(self._device)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to end: the allocator counts anyway."""

    def now(self) -> int:
        """Return the moment's number."""
        self._peaks.append(torch.cuda.max_memory_allocated(self._device) - self._base_bytes)
        torch.cuda.reset_peak_memory_stats(self._device)
        return len(self._peaks) - 1

    def settle(self) -> None:
        """Nothing to wait for: the allocator's figures are the host's."""

    def between(self, first: int, second: int) -> Peak:
        return Peak(max(self._peaks[first + 1 : second + 1]))


def peak_meter_of(device: torch.device) -> PeakMeter:
    """Return the meter of a device's memory."""
    return CudaPeakMeter(device) if device.type == "cuda" else CpuPeakMeter()


def working_bytes(walk: Walk, batches: Sequence[Batch], device: torch.device) -> dict[int, int]:
    """Return each layer's working memory, by its place or LOSS: the most over some micro-batches.

    The parameters must have gradients already, as in every micro-batch of a step but the first.
    """
    most: dict[int, int] = {}
    for batch in batches:
        given: list[Any] = [tensors_in(value) for value in batch.inputs.values()]
        kept = walk.saved_bytes(batch, given=[tensor for found in given for tensor in found])
        with peak_meter_of(device) as meter:
            peaks = walk.run(batch, meter)
        for place, num_bytes in _beyond(peaks, kept).items():
            most[place] = max(most.get(place, 0), num_bytes)
    return most


def _beyond(peaks: Readings[Peak], kept: Mapping[int, int]) -> dict[int, int]:
    """Return each layer's peak less what is kept of the layers up to it; the loss is the last."""
    order = sorted(kept, key=lambda place: (place == LOSS, place))
    sums = dict(zip(order, accumulate(kept[place] for place in order), strict=True))
    found = {}
    for place, before_bytes in sums.items():
        spans = (direction.get(place) for direction in (peaks.forward, peaks.backward))
        highest = max((peak.num_bytes for peak in spans if peak is not None), default=0)
        found[place] = max(0, highest - before_bytes)
    return found
