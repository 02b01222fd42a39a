"""Times of a task's model at every point of a grid."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from stagewright.document import InputError
from stagewright.profiler.measuring.clock import clock_of
from stagewright.profiler.measuring.row import NUM_WARM_UPS, interquartile_range
from stagewright.profiler.measuring.step import Autocast, Batch, run_whole
from stagewright.profiler.profile import DTYPES, Request, checked, device_description
from stagewright.profiler.tracing.observe import tensors_in
from stagewright.profiler.tracing.symbolic import first_line
from stagewright.task import Task

from .axes import Axes
from .table import Grid, GridPoint, context_fits

Progress = Callable[[Iterable[Any]], Iterable[Any]]


def measure_grid(task: Task, request: Request, axes: Axes, progress: Progress = iter) -> Grid:
    """Return the times of forward and backward at every point; on a CPU one thread computes.

    A point's repeats end at the request's max_seconds.

    Raises:
        InputError: the request is wrong, the task builds no grid, or a point fails.
    """
    batch_sizes, slowdown, device = checked(request)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    points = []
    try:
        models = [(size, *model) for size in batch_sizes for model in axes.models()]
        for size, layers, width in progress(models):
            torch.manual_seed(request.seed)
            model = task.call("grid_model", layers, width)
            if not isinstance(model, nn.Module):
                found = type(model).__name__
                raise InputError(
                    f"task {task.name}: grid_model returns a {found}, expected an nn.Module"
                )
            model.to(device, DTYPES[request.dtype])
            for length, context in axes.slices():
                inputs = task.call("grid_input", model, size, length, context)
                times = _times_ms(task, model, inputs, request, device, (size, length, context))
                points.append(_point((size, layers, width, length, context), times * slowdown))
    finally:
        torch.set_num_threads(threads)
    return Grid(
        task=task.name,
        device_type=request.device_type,
        device=device_description(device),
        emulated_slowdown=request.slowdown,
        dtype=request.dtype,
        torch_version=str(torch.__version__),
        points=tuple(points),
        fits=context_fits(tuple(points)),
    )


def _times_ms(
    task: Task,
    model: nn.Module,
    inputs: Any,
    request: Request,
    device: torch.device,
    where: tuple[int, int, int],
) -> Any:
    """Return an array of repeats times forward and backward.

    Raises:
        InputError: the model fails there, or the memory is too small.
    """
    size, length, context = where
    dtype = DTYPES[request.dtype]
    positional = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
    prepared: dict[int | str, Any] = {
        i: _prepared(value, device, dtype) for i, value in enumerate(positional)
    }
    precision = Autocast(device.type, DTYPES[request.autocast] if request.autocast else None)
    batch = Batch(size=size, inputs=prepared, loss=None, precision=precision)
    clock = clock_of(device)
    times: list[tuple[float, float]] = []
    started = time.monotonic()
    try:
        for repeat in range(-NUM_WARM_UPS, request.limits.repeats):
            model.zero_grad()
            for value in prepared.values():
                for tensor in tensors_in(value):
                    tensor.grad = None
            forward, backward, _ = run_whole(model, batch, clock, lambda: None, lambda: None)
            if repeat >= 0:
                times.append((forward, backward))
            if times and time.monotonic() - started > request.limits.max_seconds:
                break
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InputError(
            f"task {task.name}: a slice of {length} tokens after {context} fails, {size} samples: "
            f"{type(error).__name__}: {first_line(error)}; leave the point out or correct the task"
        ) from error
    return np.array(times)


def _prepared(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return an input on the device, in the dtype, a leaf that needs a gradient if it did before."""
    if not isinstance(value, torch.Tensor):
        return value
    moved = value.detach().to(device, dtype if value.is_floating_point() else None)
    return moved.requires_grad_(value.requires_grad)


def _point(where: tuple[int, int, int, int, int], times_ms: Any) -> GridPoint:
    size, layers, width, length, context = where
    forward, backward = times_ms.T.tolist()
    return GridPoint(
        batch_size=size,
        layers=layers,
        width=width,
        length=length,
        context=context,
        forward_ms=float(np.median(forward)),
        backward_ms=float(np.median(backward)),
        forward_spread_ms=interquartile_range(forward),
        backward_spread_ms=interquartile_range(backward),
        repeats=len(forward),
    )
