"""Peak memory of a rank's tensors, measured: by the device's allocator, not by the process's size.

On a GPU the allocator keeps the peak by itself. On a CPU one step is watched through torch.profiler, which
sees every allocation of a tensor, those inside kernels too; what the rank holds before it is added. Data sets
and the interpreter do not count.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

WATCHED_STEP = 2
"""Of a run, from 0: by then the optimizer has its state."""
_SILENT = "99"
"""Log level of the library behind torch.profiler, which else writes its stages to standard error."""


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the memory of some tensors; memory that several share counts once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


class PeakMemory:
    """Measures one rank's peak over its steps; on a GPU, where it costs nothing, always."""

    def __init__(self, device: torch.device, *, is_wanted: bool) -> None:
        self._device = device
        self._is_wanted = is_wanted or device.type == "cuda"
        self.measured_bytes: int | None = None
        """None: not measured (not wanted, too few steps, or another profiler runs)."""

    @contextmanager
    def watch(
        self,
        step: int,
        tensors: Mapping[str, torch.Tensor],
        optimizer: torch.optim.Optimizer | None,
        buffer_bytes: int = 0,
    ) -> Iterator[None]:
        """Measure inside, if this step of the run (from 0) is to be watched.

        Args:
            step: of this run, from 0.
            tensors: the rank's parameters and buffers.
            optimizer: theirs; what it keeps is held between steps, too.
            buffer_bytes: of the receive buffers that are kept.
        """
        if not self._is_wanted or step < WATCHED_STEP or torch._C._autograd._profiler_enabled():
            yield
        elif self._device.type == "cuda":
            if step == WATCHED_STEP:
                torch.cuda.reset_peak_memory_stats(self._device)
            yield
            self.measured_bytes = torch.cuda.max_memory_allocated(self._device)
        elif step == WATCHED_STEP:
            before = buffer_bytes + storage_bytes([*tensors.values(), *_state_of(optimizer)])
            with recorded_allocations() as changes:
                yield
            self.measured_bytes = before + peak_of(changes)
        else:
            yield


def _state_of(optimizer: torch.optim.Optimizer | None) -> list[torch.Tensor]:
    states = [] if optimizer is None else list(optimizer.state.values())
    return [v for state in states for v in state.values() if isinstance(v, torch.Tensor)]


@contextmanager
def recorded_allocations() -> Iterator[list[int]]:
    """Fill a list, at the end, with the bytes that every allocation (or, below 0, release) on the CPU had."""
    os.environ.setdefault("KINETO_LOG_LEVEL", _SILENT)
    changes: list[int] = []
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        yield changes
    results = profiler.kineto_results
    assert results is not None
    cpu = torch._C._autograd.DeviceType.CPU
    events = [e for e in results.events() if e.name() == "[memory]" and e.device_type() == cpu]
    changes += [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def peak_of(changes: Iterable[int]) -> int:
    """Return the largest sum of the first changes, at least 0."""
    held = peak = 0
    for change in changes:
        held += change
        peak = max(peak, held)
    return peak
