"""What the clock and operators cost by themselves, on a clock that counts its readings."""

import torch

from stagewright.profiler.measuring.calibration import NUM_CALIBRATED, Calibration, calibrate


class Readings:
    """A clock: each reading of it takes a millisecond, and nothing else does."""

    def __init__(self) -> None:
        self.count = 0

    def now(self) -> int:
        self.count += 1
        return self.count

    def settle(self) -> None:
        pass

    def between(self, first: int, second: int) -> float:
        return float(second - first)


def test_a_reading_costs_what_the_clock_says_and_a_hook_makes_one() -> None:
    found = calibrate(torch.device("cpu"), Readings())
    assert found.reading_ms == 1
    assert found.hook_ms == 1
    assert found.forward_launch_ms == 1 / NUM_CALIBRATED


def test_launches_add_up() -> None:
    times = Calibration(forward_launch_ms=2.0, backward_launch_ms=3.0, reading_ms=0.0, hook_ms=0.0)
    assert times.launch_ms(4, 5) == 23
