"""Meters: what they read at moments of a step, and what lies between two; the clocks of devices."""

import time
from typing import Any, Protocol, TypeVar

import torch

Amount_co = TypeVar("Amount_co", covariant=True)
"""What a meter measures: a number, or a numpy array of several."""


class Meter(Protocol[Amount_co]):
    """Reads moments now, and tells what lies between them after `settle`."""

    def now(self) -> Any:
        """Return this moment."""

    def settle(self) -> None:
        """Wait until the device has passed all moments that were read."""

    def between(self, first: Any, second: Any) -> Amount_co:
        """Return what was used from one moment to another: milliseconds, if this is a clock."""


Clock = Meter[float]
"""Its amounts are milliseconds."""


class ProcessClock:
    """The processor time that this process has used: other programs on the machine do not count."""

    def now(self) -> int:
        return time.process_time_ns()

    def settle(self) -> None:
        """Nothing to wait for: calls on a CPU return when they are done."""

    def between(self, first: int, second: int) -> float:
        return (second - first) / 1e6


class CudaClock:
    """Events on the current stream of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def settle(self) -> None:
        torch.cuda.synchronize(self.device)

    def between(self, first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        return float(first.elapsed_time(second))


def clock_of(device: torch.device) -> Clock:
    """Return the clock of a device."""
    return CudaClock(device) if device.type == "cuda" else ProcessClock()
