"""Batches: the same micro-batches on input ranks and on loss ranks, from (seed, epoch, step, micro-batch)."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from stagewright.document import InputError
from stagewright.plan import ModelInput
from stagewright.runtime.execution.randomness import seed_of
from stagewright.runtime.execution.stage import Values
from stagewright.runtime.messages.values import map_tensors, tensors_in

from .samples import Read, Request

TOGETHER_BYTES = 2**18
"""Further micro-batches are loaded together with one up to so many bytes: of small samples, most of the
time goes into code that is not in the processor's caches."""


class DataOrder:
    """Which samples of a dataset make up each micro-batch; a pure function of the seed."""

    def __init__(
        self, num_samples: int, microbatch_size: int, num_microbatches: int, seed: int
    ) -> None:
        """Raises InputError if the dataset has less than one step's samples."""
        self._num_samples = num_samples
        self._microbatch_size = microbatch_size
        self._batch_size = microbatch_size * num_microbatches
        self._seed = seed
        self._epoch: int | None = None
        self._order: list[int] = []
        """The samples of epoch self._epoch, shuffled."""
        self.steps_per_epoch = num_samples // self._batch_size
        if self.steps_per_epoch == 0:
            raise InputError(
                f"the dataset has {num_samples} samples, expected at least {self._batch_size}: "
                f"{num_microbatches} micro-batches of {microbatch_size}; plan a smaller --batch-size"
            )

    def indices(self, epoch: int, step: int, microbatch: int) -> list[int]:
        """Return the samples of one micro-batch of an epoch's step; an incomplete last step is left out."""
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(seed_of(self._seed, epoch, "order"))
            self._order = torch.randperm(self._num_samples, generator=generator).tolist()
            self._epoch = epoch
        first = step * self._batch_size + microbatch * self._microbatch_size
        return self._order[first : first + self._microbatch_size]

    def request(self, step: int, microbatch: int) -> Request:
        """Return what makes up a micro-batch of a step of the whole training."""
        epoch, position = divmod(step, self.steps_per_epoch)
        seed = seed_of(self._seed, epoch, position, "sample", microbatch)
        return Request("train", self.indices(epoch, position, microbatch), seed)


class MicrobatchData:
    """The micro-batches of one step (or of one evaluation), loaded when they are asked for."""

    def __init__(
        self,
        read: Read,
        requests: Sequence[Request],
        inputs: Sequence[ModelInput],
        dtype: torch.dtype,
        device: torch.device,
        *,
        together: bool = True,
    ) -> None:
        """requests: one for each micro-batch; together: whether to load small ones before they are needed."""
        self._together = together
        self._read_samples = read
        self._requests = requests
        self._inputs = {model_input.layer: model_input.key for model_input in inputs}
        self._dtype = dtype
        self._device = device
        self._loaded: dict[int, tuple[Any, Any]] = {}

    def __len__(self) -> int:
        """Return how many micro-batches there are."""
        return len(self._requests)

    def size_of(self, microbatch: int) -> int:
        return len(self._requests[microbatch].indices)

    def inputs_of(self, microbatch: int, layers: Sequence[str]) -> Values:
        wanted = [layer for layer in layers if layer in self._inputs]
        if not wanted:
            return {}
        data = self._load(microbatch)[0]
        return {layer: self._select(data, self._inputs[layer]) for layer in wanted}

    def target_of(self, microbatch: int) -> Any:
        return self._load(microbatch)[1]

    def prepare(
        self, microbatches: Sequence[int], layers: Sequence[str], *, with_target: bool
    ) -> None:
        first, *others = microbatches
        if first in self._loaded:
            return
        if with_target or any(layer in self._inputs for layer in layers):
            num_bytes = sum(tensor.nbytes for tensor in tensors_in(self._load(first)))
            most = TOGETHER_BYTES // max(1, num_bytes) if self._together else 0
            others = others[:most]
            self._loaded |= {microbatch: self._read(microbatch) for microbatch in others}

    def _load(self, microbatch: int) -> tuple[Any, Any]:
        if microbatch not in self._loaded:
            self._loaded = {microbatch: self._read(microbatch)}
        return self._loaded[microbatch]

    def _read(self, microbatch: int) -> tuple[Any, Any]:
        """Return inputs and targets of a micro-batch from the dataset."""
        inputs, targets = self._read_samples(self._requests[microbatch])
        return self._place(inputs), self._place(targets)

    def _place(self, value: Any) -> Any:
        """Move tensors to the device, floating-point ones to the run's dtype."""

        def place(tensor: torch.Tensor) -> torch.Tensor:
            dtype = self._dtype if tensor.is_floating_point() else tensor.dtype
            return tensor.to(self._device, dtype)

        return map_tensors(value, place)

    @staticmethod
    def _select(data: Any, key: int | str) -> Any:
        if isinstance(key, str):
            if not isinstance(data, dict) or key not in data:
                raise InputError(
                    f"dataset: input has no {key!r}, expected a dict as example_input gives"
                )
            return data[key]
        items = data if isinstance(data, tuple) else (data,)
        if key >= len(items):
            raise InputError(f"dataset: input has {len(items)} values, expected at least {key + 1}")
        return items[key]


def in_order(num_samples: int, microbatch_size: int) -> list[range]:
    """Return micro-batches that cover every sample once in order; the last one may be smaller."""
    count = math.ceil(num_samples / microbatch_size)
    return [
        range(i * microbatch_size, min(num_samples, (i + 1) * microbatch_size))
        for i in range(count)
    ]
