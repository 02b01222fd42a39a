"""A stage that keeps only its inputs: it runs forward without autograd, and again right before the backward.

Random layers draw the same numbers both times, as these depend on (seed, step, unit, layer) only.
Running statistics (BatchNorm) are updated, and the loss is computed, the second time only.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, with a stage as the segment.
"""

import torch
from torch import nn

from stagewright.plan import Border
from stagewright.runtime.messages.slicing import Slicing
from stagewright.runtime.messages.values import Payload, Precision
from stagewright.schedule import Unit

from .stage import StageRunner, UnitInputs


class RecomputingRunner(StageRunner):
    """Runs the units of one stage as StageRunner does, with less memory and one more forward."""

    def __init__(
        self,
        index: int,
        module: nn.Module,
        borders: tuple[Border, ...],
        precision: Precision,
        device: torch.device,
        slicing: Slicing | None = None,
    ) -> None:
        super().__init__(index, module, borders, precision, device, slicing)
        self._kept: dict[Unit, UnitInputs] = {}
        """Between forward and backward."""

    def forward(self, unit: Unit, given: UnitInputs) -> dict[int, Payload]:
        """Run one unit forward, keep its inputs, and return the messages to send, by target stage."""
        if not torch.is_grad_enabled():
            return super().forward(unit, given)
        self._kept[unit] = given
        buffers = list(self.module.buffers())
        before = [buffer.clone() for buffer in buffers]
        with torch.no_grad():
            outgoing = self._forward(unit, given._replace(finish=None))
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)
        return outgoing

    def backward(
        self, unit: Unit, arrived: dict[int, list[torch.Tensor]]
    ) -> dict[int, list[torch.Tensor]]:
        """Run one unit forward again, then backward; return gradients by source stage."""
        self._run_again(unit)
        return super().backward(unit, arrived)

    def backward_of_inputs(
        self, unit: Unit, arrived: dict[int, list[torch.Tensor]]
    ) -> dict[int, list[torch.Tensor]]:
        """Run one unit forward again, then the backward of its inputs."""
        self._run_again(unit)
        return super().backward_of_inputs(unit, arrived)

    @property
    def units_held(self) -> int:
        return len(self._kept) + super().units_held

    def _run_again(self, unit: Unit) -> None:
        self._forward(unit, self._kept.pop(unit))
