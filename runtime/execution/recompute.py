"""A stage that keeps only its inputs: it runs forward without autograd, and again right before the backward.

Random layers draw the same numbers both times, as these depend on (seed, step, micro-batch, layer) only.
Running statistics (BatchNorm) are updated, and the loss is computed, the second time only.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, with a stage as the segment.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stagewright.plan import Border
from stagewright.runtime.messages.values import Payload, Precision

from .stage import StageRunner, Values


@dataclass(frozen=True)
class _Inputs:
    """All that a unit's forward needs."""

    batch_size: int
    inputs: Values
    received: dict[int, Payload]
    finish: Callable[[Any], torch.Tensor] | None


class RecomputingRunner(StageRunner):
    """Runs the units of one stage as StageRunner does, with less memory and one more forward."""

    def __init__(
        self,
        index: int,
        module: nn.Module,
        borders: tuple[Border, ...],
        precision: Precision,
        device: torch.device,
    ) -> None:
        super().__init__(index, module, borders, precision, device)
        self._kept: dict[int, _Inputs] = {}
        """By micro-batch, between forward and backward."""

    def forward(
        self,
        microbatch: int,
        batch_size: int,
        inputs: Values,
        received: dict[int, Payload],
        finish: Callable[[Any], torch.Tensor] | None,
    ) -> dict[int, Payload]:
        """Run one unit forward, keep its inputs, and return the messages to send, by target stage."""
        if not torch.is_grad_enabled():
            return super().forward(microbatch, batch_size, inputs, received, finish)
        self._kept[microbatch] = _Inputs(batch_size, inputs, received, finish)
        buffers = list(self.module.buffers())
        before = [buffer.clone() for buffer in buffers]
        with torch.no_grad():
            outgoing = super().forward(microbatch, batch_size, inputs, received, None)
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)
        return outgoing

    def backward(
        self, microbatch: int, arrived: dict[int, list[torch.Tensor]]
    ) -> dict[int, list[torch.Tensor]]:
        """Run one unit forward again, then backward; return gradients by source stage."""
        self._run_again(microbatch)
        return super().backward(microbatch, arrived)

    def backward_of_inputs(
        self, microbatch: int, arrived: dict[int, list[torch.Tensor]]
    ) -> dict[int, list[torch.Tensor]]:
        """Run one unit forward again, then the backward of its inputs."""
        self._run_again(microbatch)
        return super().backward_of_inputs(microbatch, arrived)

    @property
    def units_held(self) -> int:
        return len(self._kept) + super().units_held

    def _run_again(self, microbatch: int) -> None:
        kept = self._kept.pop(microbatch)
        super().forward(microbatch, kept.batch_size, kept.inputs, kept.received, kept.finish)
