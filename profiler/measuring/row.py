"""The repeats at one micro-batch size, and the costs that follow from them."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stagewright.document import InputError
from stagewright.graph import LayerCost, WholeStep
from stagewright.profiler.tracing.symbolic import first_line, place_of_error
from stagewright.profiler.tracing.trace import TracedModel

from .calibration import Calibration
from .clock import Clock
from .counters import FLOPS, OPERATORS, WorkMeter, WorkspaceMeter
from .sizes import OutputSizes
from .step import LOSS, Batch, Readings, Walk, run_whole
from .working import working_bytes

NUM_WARM_UPS = 2
"""Steps before the first that counts: memory is allocated, libraries choose their kernels."""
MOMENTUM = 0.9
LEARNING_RATE = 0.0
"""An update costs the same at any rate, and at this one the measured model stays as it is."""
MOST_WHOLE = 3
"""Repeats of the whole step where identical layers are reused: it is a check there, and takes long."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and how the repeats run."""

    device: torch.device
    clock: Clock
    slowdown: float
    calibration: Calibration


class Row:
    """The repeats at one micro-batch size."""

    def __init__(
        self,
        traced: TracedModel,
        batches: Sequence[Batch],
        place: Place,
        is_shortened: bool = False,
    ) -> None:
        self.traced = traced
        """Its layers are walked; where they are a shortened model's, the whole step is still the model's."""
        self.batches = batches
        self.batch = batches[0]
        """The one that is measured next."""
        self.device = place.device
        self.clock = place.clock
        self.slowdown = place.slowdown
        self.calibration = place.calibration
        self.is_shortened = is_shortened
        self.walk = Walk(traced)
        self.sizes = OutputSizes(traced.layers, self.batch.size)
        trained = [p for p in traced.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=LEARNING_RATE, momentum=MOMENTUM)
        self.walks: list[Readings[float]] = []
        self.in_parts: list[Readings[float]] = []
        """Walks whose backward ran in two parts."""
        self.is_splittable = True
        """Whether the model allows them."""
        self.wholes: list[tuple[float, float, float]] = []
        self.saved_bytes: dict[int, int] = {}
        self.work: list[Readings[NDArray[np.int64]]] = []
        """By micro-batch."""
        self.workspace: Readings[int] | None = None
        self.working_bytes: dict[int, int] = {}

    def warm_up(self) -> None:
        """Run steps that do not count, and measure what is no time.

        Raises:
            InputError: the model or the loss fails.
        """
        try:
            for batch in self.batches:
                for place, num_bytes in self.walk.saved_bytes(batch, self.sizes.see).items():
                    self.saved_bytes[place] = self.saved_bytes.get(place, 0) + num_bytes
                with WorkMeter() as meter:
                    self.work.append(self.walk.run(batch, meter))
            if self.device.type == "cuda":
                self.workspace = self.walk.run(self.batch, WorkspaceMeter(self.device))
            self.working_bytes = working_bytes(self.walk, self.batches, self.device)
            self.is_splittable = self._can_split()
            for _ in range(NUM_WARM_UPS):
                self.repeat()
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InputError(
                f"{place_of_error(error)}: a training step of {self.batch.size} samples fails: "
                f"{type(error).__name__}: {first_line(error)}; choose another micro-batch size or correct "
                "the task"
            ) from error
        self.walks.clear()
        self.in_parts.clear()
        self.wholes.clear()
        self.batch = self.batches[0]
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _can_split(self) -> bool:
        """Whether the backward can run in two parts; re-entrant checkpoints forbid it."""
        try:
            self.walk.run(self.batch, self.clock, in_parts=True)
        except RuntimeError:
            return False
        return True

    def repeat(self) -> None:
        """Measure the layers, their backwards' parts and the whole step once each."""
        self.walks.append(self.walk.run(self.batch, self.clock, self._rest))
        self._rest()
        if self.is_splittable:
            walk = self.walk.run(self.batch, self.clock, self._rest, in_parts=True)
            self.in_parts.append(walk)
            self._rest()
        if not self.is_shortened or len(self.wholes) < MOST_WHOLE:
            model, update = self.traced.model, self.optimizer.step
            self.wholes.append(run_whole(model, self.batch, self.clock, update, self._rest))
            self._rest()
        self.batch = self.batches[len(self.walks) % len(self.batches)]

    def _rest(self) -> None:
        """Sleep as a rank of an emulated device type does after each computation.

        A processor that has slept starts slower (its caches are cold), in the run and so here. The CPU's
        clock does not count the sleep; on a GPU, whose clock would, there is none.
        """
        if self.slowdown > 1 and self.device.type == "cpu" and self.wholes:
            forward_ms, backward_ms, _ = self.wholes[-1]
            time.sleep((self.slowdown - 1) * (forward_ms + backward_ms) / 2 / 1e3)

    def costs(self) -> dict[int, LayerCost]:
        """Return the cost of each layer by its place, and of the loss if there is one."""
        places = list(range(len(self.traced.layers)))
        if self.batch.loss is not None:
            places.append(LOSS)
        return {place: self._cost(place) for place in places}

    def _cost(self, place: int) -> LayerCost:
        """A layer that no gradient flows through has a backward of 0; that is measured, not missing."""
        scales = self._scales()
        forward = [s * self._forward_ms(w, place) for s, w in zip(scales, self.walks, strict=True)]
        backward = [
            s * self._backward_ms(w, place) for s, w in zip(scales, self.walks, strict=True)
        ]
        backward_ms = float(np.median(backward))
        input_ms = self._input_gradient_ms(place, backward_ms)
        of_forward, of_backward = self._work(place)
        launching = self.calibration.launch_ms(of_forward[OPERATORS], of_backward[OPERATORS])
        of_engine = place in self.sizes.sparse_places
        return LayerCost(
            batch_size=self.batch.size,
            forward_ms=float(np.median(forward)),
            backward_ms=backward_ms,
            output_bytes=0 if place == LOSS else self.sizes.mean_bytes(place),
            output_spread_bytes=None if place == LOSS else self.sizes.spread_bytes(place),
            saved_bytes=round(self.saved_bytes.get(place, 0) / len(self.batches)),
            input_gradient_ms=input_ms,
            weight_gradient_ms=self._weight_gradient_ms(place, backward_ms, input_ms),
            forward_spread_ms=interquartile_range(forward),
            backward_spread_ms=interquartile_range(backward),
            repeats=len(self.walks),
            forward_flops=None if of_engine else round(of_forward[FLOPS]),
            backward_flops=None if of_engine else round(of_backward[FLOPS]),
            launch_ms=None if of_engine else float(launching) * self.slowdown,
            workspace_bytes=self._workspace_bytes(place),
            working_bytes=self.working_bytes.get(place, 0),
        )

    def _scales(self) -> list[float]:
        """Return what the times of each repeat are multiplied by, as the machine's speed drifts.

        All are 1 where repeats differ for another reason: other micro-batches, no whole step in each.
        """
        if len(self.batches) > 1 or len(self.wholes) < len(self.walks):
            return [1.0] * len(self.walks)
        return steady_scales(
            [forward_ms + backward_ms for forward_ms, backward_ms, _ in self.wholes]
        )

    def _forward_ms(self, walk: Readings[float], place: int) -> float:
        """Return a layer's forward in a walk, without the reading of the clock."""
        read_ms = walk.forward.get(place, 0.0) - self.calibration.reading_ms
        return max(0.0, read_ms) * self.slowdown

    def _backward_ms(self, walk: Readings[float], place: int) -> float:
        """Return a layer's backward in a walk, without the hooks that read the clock."""
        hooks_ms = walk.hooks.get(place, 0) * self.calibration.hook_ms
        return max(0.0, walk.backward.get(place, 0.0) - hooks_ms) * self.slowdown

    def _input_gradient_ms(self, place: int, backward_ms: float) -> float | None:
        """Return the part of a backward for the layer's inputs; None: the model does not allow it alone."""
        if not self.is_splittable:
            return None
        if all(place not in walk.backward for walk in self.in_parts):
            return 0.0
        is_pure = place != LOSS and place not in self.walk.takes_parameters
        if is_pure and not self.traced.layers[place].parameters:
            return backward_ms  # Autograd has nothing to leave out there.
        pairs = zip(self._scales(), self.in_parts, strict=True)
        times = [scale * self._backward_ms(walk, place) for scale, walk in pairs]
        return min(float(np.median(times)), backward_ms)

    def _weight_gradient_ms(
        self, place: int, backward_ms: float, input_ms: float | None
    ) -> float | None:
        """Return the part of a backward for the layer's weights: run by itself, or what I leaves of it."""
        if input_ms is None:
            return None
        pairs = zip(self._scales(), self.in_parts, strict=True)
        spans = [scale * walk.weights[place] for scale, walk in pairs if place in walk.weights]
        if not spans:
            return max(0.0, backward_ms - input_ms)
        read_ms = float(np.median(spans)) - self.calibration.reading_ms
        return max(0.0, read_ms) * self.slowdown

    def _work(self, place: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the flops and operators of forward and backward, in the mean over the micro-batches."""
        none = np.zeros(2, dtype=np.int64)
        forward = [one.forward.get(place, none) for one in self.work]
        backward = [one.backward.get(place, none) for one in self.work]
        return np.mean(forward, axis=0), np.mean(backward, axis=0)

    def _workspace_bytes(self, place: int) -> int | None:
        if self.workspace is None:
            return None
        return max(self.workspace.forward.get(place, 0), self.workspace.backward.get(place, 0))

    def uncertainty(self) -> float:
        """Return the spread of the walks' times over their median, by the root of the number of walks."""
        totals = [sum(w.forward.values()) + sum(w.backward.values()) for w in self.walks]
        return interquartile_range(totals) / float(np.median(totals)) / math.sqrt(len(totals))

    def whole(self) -> WholeStep:
        forward, backward, update = np.median(np.array(self.wholes), axis=0) * self.slowdown
        return WholeStep(
            batch_size=self.batch.size,
            forward_ms=float(forward),
            backward_ms=float(backward),
            update_ms=float(update),
            update_optimizer="SGD",
            peak_bytes=(
                torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
            ),
        )


def steady_scales(whole_ms: Sequence[float]) -> list[float]:
    """Return by how much each repeat was faster than the median one, as its step in one piece tells."""
    median_ms = float(np.median(whole_ms))
    return [median_ms / ms if ms > 0 else 1.0 for ms in whole_ms]


def interquartile_range(values: Sequence[float]) -> float:
    """Return the distance between the quartiles."""
    low, high = np.percentile(values, [25, 75])
    return float(high - low)
