"""What a device's clock and operators cost by themselves, measured before anything else.

Two uses: the clock's own readings are taken off the layers' times, and a layer whose time is hardly more than
the launch of its operators is reported. An operator on one number is all launch.
"""

from dataclasses import dataclass
from statistics import median

import torch

from .clock import Clock

NUM_CALIBRATED = 400
NUM_CHAINS = 3


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Milliseconds on one device."""

    forward_launch_ms: float
    """An operator's forward."""
    backward_launch_ms: float
    """Its backward."""
    reading_ms: float
    """What a forward's span counts of reading the clock at both ends."""
    hook_ms: float
    """What a hook on an autograd function that reads the clock adds to the backward."""

    def launch_ms(self, forward_operators: float, backward_operators: float) -> float:
        """Return what launching so many operators takes."""
        return (
            self.forward_launch_ms * forward_operators
            + self.backward_launch_ms * backward_operators
        )


def calibrate(device: torch.device, clock: Clock) -> Calibration:
    """Return what is measured on chains of multiplications, the best of some; readings' costs as medians.

    On a GPU the readings are events, which its stream passes in no time, so nothing is taken off.
    """
    plain = [_chain_ms(device, clock, has_hooks=False) for _ in range(NUM_CHAINS)]
    hooked = [_chain_ms(device, clock, has_hooks=True) for _ in range(NUM_CHAINS)]
    forward_ms, backward_ms = (min(one) / NUM_CALIBRATED for one in zip(*plain, strict=True))
    hooked_ms = min(backward for _, backward in hooked) / NUM_CALIBRATED
    is_gpu = device.type == "cuda"
    spans = [(clock.now(), clock.now()) for _ in range(NUM_CALIBRATED)]
    clock.settle()
    return Calibration(
        forward_launch_ms=forward_ms,
        backward_launch_ms=backward_ms,
        reading_ms=0.0 if is_gpu else median(clock.between(*span) for span in spans),
        hook_ms=0.0 if is_gpu else max(0.0, hooked_ms - backward_ms),
    )


def _chain_ms(device: torch.device, clock: Clock, has_hooks: bool) -> tuple[float, float]:
    """Return the time of a chain's forward and of its backward."""
    value = torch.ones(1, device=device, requires_grad=True)
    factor = torch.ones(1, device=device)
    marks: list[tuple[int, object]] = []
    first = clock.now()
    for _ in range(NUM_CALIBRATED):
        value = value * factor
    second = clock.now()
    function = value.grad_fn
    while has_hooks and function is not None and function.next_functions:
        function.register_prehook(lambda _: marks.append((0, clock.now())))
        function = function.next_functions[0][0]
    start = clock.now()
    value.backward()  # type: ignore[no-untyped-call]
    end = clock.now()
    clock.settle()
    return clock.between(first, second), clock.between(start, end)
