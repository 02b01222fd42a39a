"""What a training step took on one rank."""

from dataclasses import dataclass, field

from stagewright.runtime.execution.executor import Measurement
from stagewright.runtime.messages.traffic import BorderTraffic

MEASURED_STEPS = 1000
"""Times of the last so many steps are kept for the report: a long training must not fill the memory."""


@dataclass
class StepTimes:
    """What one training step took on this rank, measured, in seconds."""

    actions: list[Measurement]
    start_s: float
    """Of time.perf_counter."""
    step_s: float
    reduce_s: float
    update_s: float | None = None
    """None: this rank has nothing to update."""
    gradient_norm: float | None = None
    """Of all gradients of the model, before clipping; None: not clipped."""
    sent: BorderTraffic = field(default_factory=dict)

    @property
    def busy_s(self) -> float:
        """What it spent computing: actions and update, without waits for other ranks."""
        computing_s = sum(item.end_s - item.start_s for item in self.actions)
        return computing_s + (self.update_s or 0.0)
