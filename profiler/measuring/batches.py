"""The micro-batches that are measured: the example input, or many of the dataset where sizes depend on it."""

from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from stagewright.document import InputError
from stagewright.profiler.tracing.inputs import inputs_of, moved
from stagewright.profiler.tracing.symbolic import first_line
from stagewright.profiler.tracing.trace import TracedModel
from stagewright.task import Task
from stagewright.value import is_ragged

from .step import PLAIN, Autocast, Batch

NUM_BATCHES = 16
"""Different micro-batches of a model whose sizes depend on the data."""
ORDER_SEED = 0


def batches_of(
    traced: TracedModel, task: Task, size: int, precision: Autocast = PLAIN
) -> list[Batch]:
    """Return the micro-batches to measure, in turns.

    Where every size follows from the number of samples, one: the task's example input. Where some depend on
    the data, NUM_BATCHES: inputs and targets of the task's dataset, shuffled, or of as many calls of
    example_input if it has none.

    Raises:
        InputError: the dataset is empty, its samples are no pairs, or its inputs are not the example's.
    """
    is_static = not any(
        layer.output is not None and is_ragged(layer.output) for layer in traced.layers
    )
    if is_static:
        return [batch_of(traced, task, size, precision)]
    if not (task.has("loss") and task.has("dataset")):
        return [batch_of(traced, task, size, precision) for _ in range(NUM_BATCHES)]
    dataset: Any = task.call("dataset", "train")
    keys = inputs_of(task, size, traced.model).keys()
    generator = torch.Generator().manual_seed(ORDER_SEED)
    order = np.resize(torch.randperm(len(dataset), generator=generator).numpy(), NUM_BATCHES * size)
    batches = []
    for first in range(0, len(order), size):
        inputs, target = _collated(task, dataset, order[first : first + size].tolist())
        if isinstance(inputs, torch.Tensor):
            inputs = (inputs,)
        by_key = inputs if isinstance(inputs, dict) else dict(enumerate(inputs))
        if not keys <= by_key.keys():
            raise InputError(
                f"task {task.name}: dataset('train') has the inputs {sorted(map(str, by_key))}, expected "
                f"those of example_input: {sorted(map(str, keys))}"
            )
        chosen = {key: moved(by_key[key], traced.model) for key in keys}
        batches.append(_with_loss(traced, task, size, chosen, target, precision))
    return batches


def batch_of(traced: TracedModel, task: Task, size: int, precision: Autocast = PLAIN) -> Batch:
    """Return a micro-batch of the task's example input, with the loss against its dataset's targets.

    Raises:
        InputError: the dataset is empty or its samples are no pairs.
    """
    inputs = inputs_of(task, size, traced.model)
    if not (task.has("loss") and task.has("dataset")):
        return Batch(size=size, inputs=inputs, loss=None, precision=precision)
    dataset: Any = task.call("dataset", "train")
    count = len(dataset) or 1
    _, target = _collated(task, dataset, [i % count for i in range(size)])
    return _with_loss(traced, task, size, inputs, target, precision)


def _with_loss(
    traced: TracedModel,
    task: Task,
    size: int,
    inputs: dict[int | str, Any],
    target: Any,
    precision: Autocast,
) -> Batch:
    on_device = moved(target, traced.model)
    loss = task.function("loss")
    return Batch(
        size=size, inputs=inputs, loss=lambda output: loss(output, on_device), precision=precision
    )


def _collated(task: Task, dataset: Any, indices: list[int]) -> tuple[Any, Any]:
    """Return inputs and targets of some samples.

    Raises:
        InputError: there are none, or they are no pairs.
    """
    try:
        inputs, target = default_collate([dataset[index] for index in indices])
    except (ZeroDivisionError, IndexError, ValueError, TypeError) as error:
        raise InputError(
            f"task {task.name}: dataset('train') is no map-style dataset of (input, target): "
            f"{first_line(error)}"
        ) from None
    return inputs, target
