"""Measuring a traced model: repeats of the walk and of the whole step, in turns, and their medians."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from stagewright.document import InputError
from stagewright.graph import LayerCost, LayerNode, WholeStep
from stagewright.profiler.tracing.inputs import inputs_of, moved
from stagewright.profiler.tracing.symbolic import first_line, place_of_error
from stagewright.profiler.tracing.trace import TracedModel
from stagewright.task import Task
from stagewright.value import tensors_of

from .clock import Clock, clock_of
from .step import LOSS, Batch, StepTimes, Walk, run_whole

NUM_WARM_UPS = 3
"""Steps before the first that counts: memory is allocated, libraries choose their kernels."""
MOMENTUM = 0.9
LEARNING_RATE = 0.0
"""An update costs the same at any rate, and at this one the measured model stays as it is."""


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """How long to measure."""

    repeats: int = 20
    max_seconds: float = 120.0
    """Stop after this time, however few repeats there are then (at least one)."""


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What a model costs, per micro-batch size in the order asked for."""

    layers: Mapping[str, tuple[LayerCost, ...]]
    loss: tuple[LayerCost, ...]
    whole: tuple[WholeStep, ...]


def measure(
    traced: TracedModel,
    task: Task,
    batch_sizes: Sequence[int],
    limits: Repeats,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    slowdown: float = 1.0,
) -> Measurements:
    """Return what each layer, the loss and the whole step cost on the device that the model is on.

    On a CPU one thread computes. The turns alternate between walk and whole and between micro-batch sizes,
    so that a machine that becomes slower or faster changes all alike.

    Args:
        progress: wraps the repeats, for a progress bar.
        slowdown: all times are multiplied by it (an emulated device type).

    Raises:
        InputError: the model or the loss fails on a micro-batch of that size.
    """
    device = device_of(traced)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [
            _Row(traced, task, size, device, clock_of(device), slowdown) for size in batch_sizes
        ]
        started = time.monotonic()
        for row in rows:
            row.warm_up()
        for _ in progress(range(limits.repeats)):
            for row in rows:
                row.repeat()
            if time.monotonic() - started > limits.max_seconds:
                break
    finally:
        torch.set_num_threads(threads)
    costs = [row.costs() for row in rows]
    return Measurements(
        layers={
            layer.name: tuple(by_place[i] for by_place in costs)
            for i, layer in enumerate(traced.layers)
        },
        loss=tuple(by_place[LOSS] for by_place in costs if LOSS in by_place),
        whole=tuple(row.whole() for row in rows),
    )


def device_of(traced: TracedModel) -> torch.device:
    """Return the device of a model's parameters."""
    return next((tensor.device for tensor in traced.model.parameters()), torch.device("cpu"))


class _Row:
    """The repeats at one micro-batch size."""

    def __init__(
        self, traced: TracedModel, task: Task, size: int, device: torch.device, clock: Clock,
        slowdown: float,
    ) -> None:  # fmt: skip
        self.traced = traced
        self.batch = batch_of(traced, task, size)
        self.device = device
        self.clock = clock
        self.slowdown = slowdown
        self.walk = Walk(traced)
        trained = [p for p in traced.model.parameters() if p.requires_grad]
        if not trained:
            raise InputError(f"task {task.name}: the model has no parameter that is trained")
        self.optimizer = torch.optim.SGD(trained, lr=LEARNING_RATE, momentum=MOMENTUM)
        self.walks: list[StepTimes] = []
        self.wholes: list[tuple[float, float, float]] = []
        self.saved_bytes: dict[int, int] = {}

    def warm_up(self) -> None:
        """Run steps that do not count, and measure what autograd keeps.

        Raises:
            InputError: the model or the loss fails.
        """
        try:
            self.saved_bytes = self.walk.saved_bytes(self.batch)
            for _ in range(NUM_WARM_UPS):
                self.repeat()
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InputError(
                f"{place_of_error(error)}: a training step of {self.batch.size} samples fails: "
                f"{type(error).__name__}: {first_line(error)}; choose another micro-batch size or correct "
                "the task"
            ) from error
        self.walks.clear()
        self.wholes.clear()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def repeat(self) -> None:
        self.walks.append(self.walk.run(self.batch, self.clock, self._rest))
        self._rest()
        model, update = self.traced.model, self.optimizer.step
        self.wholes.append(run_whole(model, self.batch, self.clock, update, self._rest))
        self._rest()

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
        forward = [walk.forward_ms.get(place, 0.0) * self.slowdown for walk in self.walks]
        backward = [walk.backward_ms.get(place, 0.0) * self.slowdown for walk in self.walks]
        return LayerCost(
            batch_size=self.batch.size,
            forward_ms=float(np.median(forward)),
            backward_ms=float(np.median(backward)),
            output_bytes=0 if place == LOSS else self._output_bytes(self.traced.layers[place]),
            saved_bytes=self.saved_bytes.get(place, 0),
            forward_spread_ms=interquartile_range(forward),
            backward_spread_ms=interquartile_range(backward),
            repeats=len(self.walks),
        )

    def _output_bytes(self, layer: LayerNode) -> int:
        assert layer.output is not None
        return sum(tensor.bytes_at(self.batch.size) for tensor in tensors_of(layer.output))

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


def interquartile_range(values: Sequence[float]) -> float:
    """Return the distance between the quartiles."""
    low, high = np.percentile(values, [25, 75])
    return float(high - low)


def batch_of(traced: TracedModel, task: Task, size: int) -> Batch:
    """Return a micro-batch of the task's example input, with the loss against its dataset's targets.

    Raises:
        InputError: the dataset is empty or its samples are no pairs.
    """
    model = traced.model
    inputs = inputs_of(task, size, model)
    if not (task.has("loss") and task.has("dataset")):
        return Batch(size=size, inputs=inputs, loss=None)
    dataset: Any = task.call("dataset", "train")
    try:
        samples = [dataset[i % len(dataset)] for i in range(size)]
        _, target = default_collate(samples)
    except (ZeroDivisionError, ValueError, TypeError) as error:
        raise InputError(
            f"task {task.name}: dataset('train') is no map-style dataset of (input, target): "
            f"{first_line(error)}"
        ) from None
    target = moved(target, model)
    loss = task.function("loss")
    return Batch(size=size, inputs=inputs, loss=lambda output: loss(output, target))
