"""Samples: what a dataset gives for a micro-batch, read here or, ahead of training, in other processes.

A request says all that the samples depend on, so they are the same bit for bit whoever reads them.
"""

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from stagewright.document import InputError
from stagewright.runtime.execution.randomness import seeded
from stagewright.runtime.messages.buffers import NUMPY_DTYPES
from stagewright.runtime.messages.values import map_tensors
from stagewright.task import load_task

BY_VALUE_BYTES = 2**20
"""Tensors of up to so many bytes are sent by value. Shared memory is a file that the reading process makes
and hands over by a connection of its own to one of its threads, which takes longer than copying."""
RANK_CHECK_S = 1.0
"""How often a process that reads looks whether its rank is still there."""


class Request(NamedTuple):
    """The samples of one micro-batch."""

    split: str
    indices: Sequence[int]
    seed: int
    """Of what the dataset draws at random (augmentation)."""


Read = Callable[[Request], tuple[Any, Any]]
"""Returns inputs and targets, samples in dimension 0."""


def read_samples(dataset: Dataset[Any], request: Request) -> tuple[Any, Any]:
    """Return the inputs and the targets of a micro-batch.

    Raises:
        InputError: an item is no pair, or items differ in shape or type.
    """
    with seeded(request.seed):
        samples = [dataset[index] for index in request.indices]
    if not isinstance(samples[0], tuple | list) or len(samples[0]) != 2:
        raise InputError(
            f"dataset: item is a {type(samples[0]).__name__}, expected (input, target)"
        )
    try:
        inputs, targets = default_collate(samples)
    except (RuntimeError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"dataset({request.split!r}): item {request.indices[0]} and the {len(samples) - 1} others of its "
            f"micro-batch cannot be stacked: {reason}; give all items the same shapes and types (clouds: as "
            "many points each)"
        ) from error
    return inputs, targets


class SamplesAhead:
    """Reads what is going to be asked for, in this order, in processes of its own.

    They are started anew (not forked): a fork would keep the rank's connections open after its death, and
    locks of its threads closed.
    """

    def __init__(self, task: str, requests: Iterable[Request], num_workers: int) -> None:
        """Start the processes and wait for the first micro-batch.

        Args:
            task: as the user named it: each process loads it and its datasets itself.
            requests: all, in order.
            num_workers: processes.
        """
        loader = DataLoader(
            _WorkerSamples(task),
            batch_size=None,
            sampler=requests,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            multiprocessing_context="spawn",
            worker_init_fn=partial(_end_with, os.getpid()),
            generator=torch.Generator(),  # Else it would draw from torch's own.
        )
        answers = iter(loader)
        first = [answer for answer in [next(answers, None)] if answer is not None]
        self._answers: Iterator[Any] = itertools.chain(first, answers)

    def read(self, request: Request) -> tuple[Any, Any]:
        """Return the inputs and the targets of the next micro-batch.

        Raises:
            InputError: as `read_samples` does.
        """
        seed, found = next(self._answers)
        assert seed == request.seed, "samples are asked for in another order"
        if isinstance(found, InputError):
            raise found
        return map_tensors(found, torch.from_numpy, np.ndarray)  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the processes."""
        self._answers = iter(())


class _WorkerSamples(Dataset[Any]):
    """A task's datasets in a process that reads them."""

    def __init__(self, task: str) -> None:
        self._task = task
        self._datasets: dict[str, Any] = {}

    def __getitem__(self, request: Request) -> tuple[int, tuple[Any, Any] | InputError]:
        try:
            if request.split not in self._datasets:
                self._datasets[request.split] = load_task(self._task).call("dataset", request.split)
            samples = read_samples(self._datasets[request.split], request)
            return request.seed, map_tensors(samples, by_value)
        except InputError as error:  # Raised by the rank: as one line, without a traceback.
            return request.seed, error


def by_value(tensor: torch.Tensor) -> Any:
    """Return what is sent for a tensor: a small one of a type that numpy knows as its array."""
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    is_small = is_plain and tensor.dtype in NUMPY_DTYPES and tensor.nbytes <= BY_VALUE_BYTES
    return tensor.detach().numpy() if is_small else tensor


def _as_it_is(answer: Any) -> Any:
    return answer


def _end_with(rank_id: int, _: int) -> None:
    """End this process when the rank that started it is gone, even while its dataset waits for a disk."""

    def watch() -> None:
        while os.getppid() == rank_id:
            time.sleep(RANK_CHECK_S)
        os._exit(0)

    threading.Thread(target=watch, name="stagewright-rank-watch", daemon=True).start()
