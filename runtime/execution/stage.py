"""One stage on one rank: forward and backward of a unit, and what is kept between the two."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stagewright.plan import Border
from stagewright.runtime.messages.codecs import pack_border, unpack_border
from stagewright.runtime.messages.values import Payload, Precision

from .split_backward import PendingWeights, backward_of_inputs

Values = dict[str, Any]
"""Values of layers by name."""


@dataclass
class _Unit:
    """What a unit keeps from its forward to its backward."""

    received: dict[int, list[torch.Tensor]]
    """By source stage: the received tensors that need a gradient."""
    sent: dict[int, list[torch.Tensor]]
    """By target stage: the tensors that get a gradient back."""
    loss: torch.Tensor | None
    weights: PendingWeights | None = None
    """After the backward of the inputs: what is left for the weights."""

    @property
    def leaves(self) -> list[torch.Tensor]:
        return [leaf for leaves in self.received.values() for leaf in leaves]

    def roots(
        self, arrived: dict[int, list[torch.Tensor]]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
        """Return what the backward starts at, and the gradients there."""
        roots: list[torch.Tensor] = []
        gradients: list[torch.Tensor | None] = []
        if self.loss is not None:
            roots.append(self.loss)
            gradients.append(None)
        for target, tensors in self.sent.items():
            for tensor, gradient in zip(tensors, arrived[target], strict=True):
                if tensor.requires_grad:
                    roots.append(tensor)
                    gradients.append(gradient)
        return roots, gradients

    def by_source(self, found: list[torch.Tensor | None]) -> dict[int, list[torch.Tensor]]:
        """Return the leaves' gradients by source stage, zeros where there is none."""
        each = iter(found)
        return {
            source: [
                torch.zeros_like(leaf) if gradient is None else gradient
                for leaf, gradient in zip(leaves, each, strict=False)
            ]
            for source, leaves in self.received.items()
        }


class StageRunner:
    """Runs the units of one stage; knows nothing of ranks and schedules."""

    def __init__(
        self,
        index: int,
        module: nn.Module,
        borders: tuple[Border, ...],
        precision: Precision,
        device: torch.device,
    ) -> None:
        self.index = index
        self.module = module
        self._precision = precision
        self._device = device
        self.sources = tuple(border for border in borders if border.target == index)
        self.targets = tuple(border for border in borders if border.source == index)
        self._units: dict[int, _Unit] = {}

    def forward(
        self,
        microbatch: int,
        batch_size: int,
        inputs: Values,
        received: dict[int, Payload],
        finish: Callable[[Any], torch.Tensor] | None,
    ) -> dict[int, Payload]:
        """Run one unit forward and return the messages to send, by target stage.

        Args:
            microbatch: which unit.
            batch_size: samples in it.
            inputs: the model's inputs that this stage takes, by layer name.
            received: by source stage, the message of its border.
            finish: on the last stage, what makes the weighted loss of the model's output.

        Raises:
            ValueMismatchError: the stage returned something else than the plan says.
        """
        values, leaves = dict(inputs), {}
        training = torch.is_grad_enabled()
        shared: dict[Hashable, Any] = {}
        for border in self.sources:
            payload = received[border.source]
            if training:
                leaves[border.source] = _as_leaves(payload)
            values |= unpack_border(border, payload, batch_size, shared)
        with self._precision.context(self._device):
            output = self.module(*(values[name] for name in self.input_names))
            loss = finish(output) if finish is not None else None
        outgoing = self._outgoing(output, batch_size)
        if training:
            sent = {
                border.target: outgoing[border.target].trained
                for border in self.targets
                if border.carries_gradient
            }
            self._units[microbatch] = _Unit(leaves, sent, loss)
        return outgoing

    @property
    def input_names(self) -> tuple[str, ...]:
        return self.module.inputs  # type: ignore[return-value]

    @property
    def _output_names(self) -> tuple[str, ...]:
        return self.module.outputs  # type: ignore[return-value]

    def _outgoing(self, output: Any, batch_size: int) -> dict[int, Payload]:
        """Return the message of every outgoing border from what the module returned."""
        if not self.targets:
            return {}
        named = dict(zip(self._output_names, output, strict=True))
        return {
            border.target: pack_border(border, named.__getitem__, batch_size, self._precision)
            for border in self.targets
        }

    def backward(
        self, microbatch: int, arrived: dict[int, list[torch.Tensor]]
    ) -> dict[int, list[torch.Tensor]]:
        """Run one unit backward, adding to the parameters' gradients; return gradients by source stage.

        Args:
            microbatch: which unit.
            arrived: by target stage, the gradients that came back from it.
        """
        unit = self._units.pop(microbatch)
        roots, gradients = unit.roots(arrived)
        if roots:
            torch.autograd.backward(roots, gradients)
        return unit.by_source([leaf.grad for leaf in unit.leaves])

    def backward_of_inputs(
        self, microbatch: int, arrived: dict[int, list[torch.Tensor]]
    ) -> dict[int, list[torch.Tensor]]:
        """Run the part of the backward that other stages wait for; `backward_of_weights` does the rest."""
        unit = self._units[microbatch]
        roots, gradients = unit.roots(arrived)
        if not roots:
            return unit.by_source([None] * len(unit.leaves))
        found, unit.weights = backward_of_inputs(roots, gradients, unit.leaves)
        unit.sent, unit.loss = {}, None
        return unit.by_source(found)

    def backward_of_weights(self, microbatch: int) -> None:
        """Add what is left of a unit's backward to the parameters' gradients."""
        weights = self._units.pop(microbatch).weights
        if weights is not None:
            weights.run()

    @property
    def units_held(self) -> int:
        return len(self._units)


def _as_leaves(payload: Payload) -> list[torch.Tensor]:
    """Make received tensors leaves of this stage's autograd graph; return those that get a gradient."""
    leaves = payload.trained
    for leaf in leaves:
        leaf.requires_grad_()
    return leaves
