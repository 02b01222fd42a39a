"""How a training runs: what the train command's options say, the same on every rank."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from stagewright.document import InputError
from stagewright.runtime.messages.slicing import Slicing
from stagewright.schedule import Schedule

from .updating import class_name, make_optimizer, rate_at

OPTION_OF = {
    "learning_rate": "--lr",
    "optimizer_options": "--optimizer-option",
    "rate_schedule": "--lr-schedule",
    "warm_up_steps": "--warm-up",
    "rows": "--schedule-file",
    "overlap": "--no-overlap",
    "evaluate": "--no-evaluation",
    "measure_memory": "--report",
    "checkpoint_folder": "--checkpoint",
}
"""The train command's options whose names are not those of the fields of Settings and TrainingOptions."""
SGD_MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train; the same on every rank."""

    optimizer: str = "sgd"
    learning_rate: float = 0.01
    momentum: float | None = None
    """SGD only; None: SGD_MOMENTUM."""
    weight_decay: float = 0.0
    optimizer_options: tuple[tuple[str, Any], ...] = ()
    """More arguments of the optimizer, by name."""
    rate_schedule: str = "constant"
    """How the learning rate changes: updating.rate_at."""
    warm_up_steps: int = 0
    clip_norm: float | None = None
    """Largest norm of all gradients together; None: not clipped."""
    seed: int = 0
    schedule: str | None = None
    """None: the plan's."""
    update_window: int | None = None
    """Micro-batches per update, which is a step; None: the plan's."""
    rows: Schedule | None = None
    """Of a schedule of the user's own, with flush, instead of a named one."""
    slicing: Slicing | None = None
    """How to cut every micro-batch into slices; exact where positions do not see one another, or the stages
    keep what later slices see (execution/earlier_slices.py)."""
    dtype: str | None = None
    """Of the parameters; None: the plan's."""
    precision: str | None = None
    """One of precision.PRECISIONS; None: the plan's."""
    overlap: bool = True
    """Whether gradients of the last layers are summed while the first ones still go backward."""
    weights: Path | None = None
    """A safetensors file to start from; None: what the task's factory builds under the seed."""
    measure_memory: bool = False
    """Whether to measure the peak of the rank's memory; on a CPU this makes one step slower."""

    def __post_init__(self) -> None:
        """Raise InputError if a momentum is given that the optimizer does not take."""
        if self.momentum is not None and not self._is_sgd:
            raise InputError(
                f"--momentum is for sgd, but --optimizer is {self.optimizer!r}; leave it out, or give "
                f"--optimizer-option momentum={self.momentum:g} if the optimizer takes it"
            )

    @property
    def _is_sgd(self) -> bool:
        return class_name(self.optimizer) == "SGD"

    def learning_rate_at(self, step: int, num_steps: int) -> float:
        """Return the learning rate of a step (counted from 0) of a training of some steps."""
        part = rate_at(self.rate_schedule, step, num_steps, self.warm_up_steps)
        return self.learning_rate * part

    def make_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer | None:
        """Return the optimizer of one rank's parameters; None if it has none to train."""
        if not parameters:
            return None
        options: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        if self._is_sgd:
            options["momentum"] = SGD_MOMENTUM if self.momentum is None else self.momentum
        return make_optimizer(self.optimizer, parameters, options | dict(self.optimizer_options))


def options_that_agree(record: Any, *left_out: str) -> dict[str, str]:
    """Return what must be the same on all ranks, by the train command's option.

    Of a path only whether it is given: servers may know one folder by several names.

    Args:
        record: Settings or TrainingOptions.
        left_out: fields that may differ.
    """
    values = {f.name: getattr(record, f.name) for f in fields(record) if f.name not in left_out}
    options = {name: OPTION_OF.get(name, f"--{name.replace('_', '-')}") for name in values}
    return {
        options[name]: "given"
        if isinstance(value, Path)
        else repr(not value if options[name].startswith("--no-") else value)
        for name, value in values.items()
    }
