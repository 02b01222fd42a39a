"""Stagewright in a user's own torchrun script: three lines load a stage directory and train on a batch.

from stagewright.runtime.library import start, step
session = start("stages", "task.py", optimizer="adamw", learning_rate=1e-3)
loss = step(session, inputs, targets)

Every rank runs the same script and gives the same batch. `stagewright train` is built on the same session.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from stagewright.document import InputError

from .execution.executor import Batches
from .execution.stage import Values
from .messages.values import map_tensors, tensors_in
from .ranks.faults import waiting_for
from .ranks.roll_call import naming_the_missing
from .ranks.world import check_world_size, choose_device, join_world, ranks_started
from .session import Session
from .storage.package import load_package
from .training.settings import Settings


def start(
    directory: str | Path,
    task: str,
    *,
    device: str = "auto",
    timeout_s: float = 60.0,
    **settings: Any,
) -> Session:
    """Return this rank's session for a generated package; torchrun's environment says which rank it is.

    Args:
        directory: what `stagewright generate` wrote.
        task: package.module or path/to/file.py with the factory and the loss.
        device: auto, cpu, cuda or cuda:N.
        timeout_s: longest wait for another rank in a step.
        settings: those of `Settings`, by name.

    Raises:
        InputError: another number of ranks was started than the plan has, or something does not fit.
    """
    rank, size, local_rank = ranks_started(os.environ)
    check_world_size(load_package(Path(directory)).plan, size)
    world = join_world(rank, size, choose_device(device, local_rank), timeout_s)
    with naming_the_missing(world):
        return Session.start(Path(directory), task, world, Settings(**settings))


def step(session: Session, inputs: Any, targets: Any, num_steps: int | None = None) -> float:
    """Train one step on a batch; return its mean loss, on every rank.

    Args:
        session: of `start`.
        inputs: the batch as the task's example_input gives it: a tensor, or a tuple or a dict of tensors,
            samples in dimension 0; the same on every rank.
        targets: what the task's loss takes beside the output: tensors likewise, or None.
        num_steps: of the whole training; needed where the learning rate falls.

    Raises:
        InputError: the samples do not make the plan's number of micro-batches.
        PeerLostError: another rank died or is stuck.
    """
    batch = TensorBatch(session, inputs, targets)
    with naming_the_missing(session.world):
        own = session.train_step(batch, session.num_steps_run, num_steps)
        total = torch.tensor(sum(own.values()), dtype=torch.float64)
        if session.world.control is not None:
            with waiting_for("the losses of the step"):
                dist.all_reduce(total, group=session.world.control)
    return float(total)


class TensorBatch(Batches):
    """The micro-batches of one batch of tensors; the last may have fewer samples."""

    def __init__(self, session: Session, inputs: Any, targets: Any) -> None:
        """Raises InputError if the samples do not make the plan's number of micro-batches."""
        self._session = session
        self._inputs = inputs
        self._targets = targets
        self._size = session.plan.microbatch_size
        sizes = {len(tensor) for tensor in tensors_in((inputs, targets))}
        if len(sizes) != 1:
            raise InputError(
                f"the batch has tensors of {sorted(sizes)} samples, expected one number in dimension 0"
            )
        (self._num_samples,) = sizes
        count = session.microbatches_per_step
        if -(-self._num_samples // self._size) != count:
            raise InputError(
                f"the batch has {self._num_samples} samples, expected {(count - 1) * self._size + 1} to "
                f"{count * self._size}: the plan has {count} micro-batches of {self._size}"
            )

    def size_of(self, microbatch: int) -> int:
        return min(self._size, self._num_samples - microbatch * self._size)

    def inputs_of(self, microbatch: int, layers: Sequence[str]) -> Values:
        values = {}
        for planned in self._session.plan.inputs:
            if planned.layer in layers:
                given = self._inputs
                if not isinstance(given, dict | tuple | list):
                    given = (given,)
                try:
                    values[planned.layer] = self._part(given[planned.key], microbatch)
                except (IndexError, KeyError, TypeError):
                    raise InputError(
                        f"the batch's inputs have no {planned.key!r}, expected them as example_input gives "
                        "them"
                    ) from None
        return values

    def target_of(self, microbatch: int) -> Any:
        return self._part(self._targets, microbatch)

    def _part(self, value: Any, microbatch: int) -> Any:
        """Return one micro-batch of a value on the rank's device, floating-point tensors in its dtype."""
        first = microbatch * self._size

        def part(tensor: torch.Tensor) -> torch.Tensor:
            dtype = self._session.dtype if tensor.is_floating_point() else tensor.dtype
            return tensor[first : first + self._size].to(self._session.world.device, dtype)

        return map_tensors(value, part)
