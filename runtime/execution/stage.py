"""One stage on one rank: forward and backward of a unit, and what is kept between the two."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from stagewright.plan import Border
from stagewright.runtime.messages.codecs import pack_border, unpack_border
from stagewright.runtime.messages.slicing import Slicing, units_of_border
from stagewright.runtime.messages.values import Payload, Precision
from stagewright.schedule import Unit

from .earlier_slices import Carried, EarlierSlices
from .split_backward import PendingWeights, backward_of_inputs

Values = dict[str, Any]
"""Values of layers by name."""


class UnitInputs(NamedTuple):
    """All that a unit's forward needs."""

    batch_size: int
    """Samples in it."""
    inputs: Values
    """The model's inputs that the stage takes, by layer name."""
    received: dict[int, Payload]
    """By source stage, the message of its border."""
    finish: Callable[[Any], torch.Tensor] | None
    """On the last stage, what makes the weighted loss of the model's output."""


@dataclass
class _Unit:
    """What a unit keeps from its forward to its backward."""

    received: dict[int, list[torch.Tensor]]
    """By source stage: the received tensors that need a gradient."""
    sent: dict[int, list[torch.Tensor]]
    """By target stage: the tensors that get a gradient back."""
    loss: torch.Tensor | None
    carried: Carried
    weights: PendingWeights | None = None
    """After the backward of the inputs: what is left for the weights."""

    @property
    def leaves(self) -> list[torch.Tensor]:
        """What gets a gradient: received tensors, then those of earlier slices."""
        received = [leaf for leaves in self.received.values() for leaf in leaves]
        return received + [leaf for leaf, _ in self.carried.taken]

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
        for tensor, gradient in self.carried.roots():
            roots.append(tensor)
            gradients.append(gradient)
        return roots, gradients

    def hand_back(self, found: list[torch.Tensor | None]) -> dict[int, list[torch.Tensor]]:
        """Return the leaves' gradients by source stage, zeros for none, and leave earlier slices theirs."""
        each = iter(found)
        by_source = {
            source: [
                torch.zeros_like(leaf) if gradient is None else gradient
                for leaf, gradient in zip(leaves, each, strict=False)
            ]
            for source, leaves in self.received.items()
        }
        self.carried.add_gradients(each)
        return by_source


class StageRunner:
    """Runs the units of one stage; knows nothing of ranks and schedules."""

    def __init__(
        self,
        index: int,
        module: nn.Module,
        borders: tuple[Border, ...],
        precision: Precision,
        device: torch.device,
        slicing: Slicing | None = None,
    ) -> None:
        """slicing: of the micro-batches whose slices are to be run, too."""
        self.index = index
        self.module = module
        self._precision = precision
        self._device = device
        self.sources = tuple(border for border in borders if border.target == index)
        self.targets = tuple(border for border in borders if border.source == index)
        own = (*self.sources, *self.targets)
        self._borders = {
            (border.source, border.target, piece): of_unit
            for border in own
            for piece, of_unit in units_of_border(border, slicing)
        }
        """By source, target and slice."""
        self._last_slice = None if slicing is None else slicing.num_slices - 1
        self.earlier = EarlierSlices()
        if slicing is not None:
            module.with_earlier = self.earlier  # type: ignore[assignment]
        self._units: dict[Unit, _Unit] = {}

    def forward(self, unit: Unit, given: UnitInputs) -> dict[int, Payload]:
        """Run one unit forward and return the messages to send, by target stage.

        Raises:
            ValueMismatchError: the stage returned something else than the plan says.
        """
        outgoing = self._forward(unit, given)
        if unit.slice == self._last_slice and not torch.is_grad_enabled():
            self.earlier.forget(unit._replace(slice=0))
        return outgoing

    def _forward(self, unit: Unit, given: UnitInputs) -> dict[int, Payload]:
        values, leaves = dict(given.inputs), {}
        training = torch.is_grad_enabled()
        shared: dict[Hashable, Any] = {}
        for border in self.sources:
            payload = given.received[border.source]
            if training:
                leaves[border.source] = _as_leaves(payload)
            of_unit = self._of_unit(border, unit)
            values |= unpack_border(of_unit, payload, given.batch_size, shared)
        carried = self.earlier.begin(unit)
        with self._precision.context(self._device):
            output = self.module(*(values[name] for name in self.input_names))
            loss = given.finish(output) if given.finish is not None else None
        outgoing = self._outgoing(output, unit, given.batch_size)
        if training:
            sent = {
                border.target: outgoing[border.target].trained
                for border in self.targets
                if border.carries_gradient
            }
            self._units[unit] = _Unit(leaves, sent, loss, carried)
        return outgoing

    @property
    def input_names(self) -> tuple[str, ...]:
        return self.module.inputs  # type: ignore[return-value]

    @property
    def _output_names(self) -> tuple[str, ...]:
        return self.module.outputs  # type: ignore[return-value]

    def _of_unit(self, border: Border, unit: Unit) -> Border:
        """Return what a border's message has for a unit."""
        return self._borders[border.source, border.target, unit.slice]

    def _outgoing(self, output: Any, unit: Unit, batch_size: int) -> dict[int, Payload]:
        """Return the message of every outgoing border from what the module returned."""
        if not self.targets:
            return {}
        named = dict(zip(self._output_names, output, strict=True))
        return {
            border.target: pack_border(
                self._of_unit(border, unit), named.__getitem__, batch_size, self._precision
            )
            for border in self.targets
        }

    def backward(
        self, unit: Unit, arrived: dict[int, list[torch.Tensor]]
    ) -> dict[int, list[torch.Tensor]]:
        """Run one unit backward, adding to the parameters' gradients; return gradients by source stage.

        Args:
            unit: which.
            arrived: by target stage, the gradients that came back from it.
        """
        kept = self._units.pop(unit)
        roots, gradients = kept.roots(arrived)
        if roots:
            torch.autograd.backward(roots, gradients)
        self.earlier.forget(unit)
        return kept.hand_back([leaf.grad for leaf in kept.leaves])

    def backward_of_inputs(
        self, unit: Unit, arrived: dict[int, list[torch.Tensor]]
    ) -> dict[int, list[torch.Tensor]]:
        """Run the part of the backward that other stages wait for; `backward_of_weights` does the rest."""
        kept = self._units[unit]
        roots, gradients = kept.roots(arrived)
        self.earlier.forget(unit)
        if not roots:
            return kept.hand_back([None] * len(kept.leaves))
        found, kept.weights = backward_of_inputs(roots, gradients, kept.leaves)
        kept.sent, kept.loss = {}, None
        back = kept.hand_back(found)
        kept.carried = Carried()
        return back

    def backward_of_weights(self, unit: Unit) -> None:
        """Add what is left of a unit's backward to the parameters' gradients."""
        weights = self._units.pop(unit).weights
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
