"""Measuring a traced model: repeats of the walk and of the whole step, in turns, and their medians."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from stagewright.document import InputError
from stagewright.graph import LayerCost, SharedMap, WholeStep
from stagewright.profiler.tracing.trace import TracedModel
from stagewright.task import Task
from stagewright.value import ValueSpec

from .batches import batches_of
from .calibration import calibrate
from .clock import clock_of
from .identical import shortened
from .maps import MapTimes, shared_maps
from .row import Place, Row
from .step import LOSS, PLAIN, Autocast


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """How long to measure, and what."""

    repeats: int = 20
    uncertainty: float | None = None
    """Go on until the spread of the step's time, over its median and over the root of the repeats, is this
    small. None: stop after `repeats`."""
    max_seconds: float = 120.0
    """Stop after this time, however few repeats there are then (at least one)."""
    reuse_identical: bool = False
    """Measure repeated identical layers once; their copies take over the costs."""


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What a model costs, per micro-batch size in the order asked for."""

    layers: Mapping[str, tuple[LayerCost, ...]]
    loss: tuple[LayerCost, ...]
    whole: tuple[WholeStep, ...]
    outputs: Mapping[str, ValueSpec]
    """What the layers return, with the sizes that were measured where they depend on the data."""
    shared_maps: tuple[SharedMap, ...] = ()


def measure(
    traced: TracedModel,
    task: Task,
    batch_sizes: Sequence[int],
    limits: Repeats,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    slowdown: float = 1.0,
    precision: Autocast = PLAIN,
) -> Measurements:
    """Return what each layer, the loss and the whole step cost on the device that the model is on.

    On a CPU one thread computes. The turns alternate between walk and whole and between micro-batch sizes,
    so that a machine that becomes slower or faster changes all alike.

    Args:
        progress: wraps the repeats, for a progress bar.
        slowdown: all times are multiplied by it (an emulated device type).
        precision: of forward and loss.

    Raises:
        InputError: the model or the loss fails on a micro-batch of that size.
    """
    if not any(parameter.requires_grad for parameter in traced.model.parameters()):
        raise InputError(f"task {task.name}: the model has no parameter that is trained")
    device = device_of(traced)
    copies: dict[str, str] = {}
    walked = traced
    if limits.reuse_identical:
        walked, copies = shortened(traced)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        clock = clock_of(device)
        calibration = calibrate(device, clock)
        place = Place(device=device, clock=clock, slowdown=slowdown, calibration=calibration)
        rows = [
            Row(walked, batches_of(traced, task, size, precision), place, bool(copies))
            for size in batch_sizes
        ]
        maps = [MapTimes(traced, row.batches, clock) for row in rows]
        _repeat(rows, maps, limits, progress)
    finally:
        torch.set_num_threads(threads)
    costs = [row.costs() for row in rows]
    layers = {
        layer.name: tuple(by_place[i] for by_place in costs)
        for i, layer in enumerate(walked.layers)
    }
    for name, other in copies.items():
        layers[name] = tuple(cost.replace(taken_from=other) for cost in layers[other])
    return Measurements(
        layers=layers,
        loss=tuple(by_place[LOSS] for by_place in costs if LOSS in by_place),
        whole=tuple(row.whole() for row in rows),
        outputs=rows[-1].sizes.specs(),
        shared_maps=shared_maps(traced.layers, layers, maps, slowdown),
    )


def _repeat(
    rows: Sequence[Row],
    maps: Sequence[MapTimes],
    limits: Repeats,
    progress: Callable[[Iterable[int]], Iterable[int]],
) -> None:
    started = time.monotonic()
    for row, own in zip(rows, maps, strict=True):
        row.warm_up()
        own.find()

    def is_over() -> bool:
        return time.monotonic() - started > limits.max_seconds

    for turn in progress(range(limits.repeats)):
        for row, own in zip(rows, maps, strict=True):
            row.repeat()
            own.repeat(turn)
        if is_over():
            return
    while limits.uncertainty is not None and not is_over():
        unsure = [row for row in rows if row.uncertainty() > limits.uncertainty]
        if not unsure:
            return
        for row in rows:
            row.repeat()


def device_of(traced: TracedModel) -> torch.device:
    """Return the device of a model's parameters."""
    return next((tensor.device for tensor in traced.model.parameters()), torch.device("cpu"))
