"""Clocks: moments of a device and the milliseconds between them."""

import time
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """Reads moments now, and tells their distance after `settle`."""

    def now(self) -> Any:
        """Return this moment."""

    def settle(self) -> None:
        """Wait until the device has passed all moments that were read."""

    def between_ms(self, first: Any, second: Any) -> float:
        """Return the milliseconds from one moment to another."""


class ProcessClock:
    """The processor time that this process has used: other programs on the machine do not count."""

    def now(self) -> int:
        return time.process_time_ns()

    def settle(self) -> None:
        """Nothing to wait for: calls on a CPU return when they are done."""

    def between_ms(self, first: int, second: int) -> float:
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

    def between_ms(self, first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        return float(first.elapsed_time(second))


def clock_of(device: torch.device) -> Clock:
    """Return the clock of a device."""
    return CudaClock(device) if device.type == "cuda" else ProcessClock()
