"""Mixed precision: which dtype a run computes in, and the scale that keeps small fp16 gradients above zero.

Parameters, their gradients and the optimizer's state stay in float32 (master weights); torch.autocast casts
what a layer computes in. Values that cross a border have the dtype that the layer gave them.
"""

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist

from stagewright.document import InputError, Record
from stagewright.flushless import FLUSHLESS
from stagewright.plan import Plan
from stagewright.runtime.ranks.faults import waiting_for
from stagewright.runtime.ranks.world import World
from stagewright.value import AUTOCAST_DTYPES

FULL = "full"
"""The precision without autocast."""
PRECISIONS = (FULL, *AUTOCAST_DTYPES)

INITIAL_SCALE = 65536.0
GROWTH = 2.0
BACKOFF = 0.5
GROWTH_INTERVAL = 2000
"""Good steps after which the scale grows; all four are those of torch.amp.GradScaler."""


def autocast_dtype(plan: Plan, precision: str | None, dtype: str) -> str | None:
    """Return torch's name of the dtype that a run's forwards compute in; None: the parameters' own.

    Args:
        plan: says which precision was profiled.
        precision: one of PRECISIONS; None: the plan's (full where the parameters are not the plan's).
        dtype: of the parameters.

    Raises:
        InputError: the plan does not know the dtypes of its borders in that precision, or the parameters
            are no float32.
    """
    if precision is None:
        return plan.autocast if dtype == plan.dtype else None
    wanted = AUTOCAST_DTYPES.get(precision)
    if wanted is not None and dtype != "float32":
        raise InputError(f"--precision {precision} needs parameters in float32, not in {dtype}")
    if wanted is not None and plan.autocast is None:
        raise InputError(
            f"--precision is {precision}, but the plan was profiled in full precision, so the dtypes of its "
            f"borders, its times and its memory are not known; profile with --autocast {precision}, then "
            "plan and generate again"
        )
    return wanted


class LossScale(Record):
    """The state of dynamic loss scaling: the same on every rank."""

    scale: float = INITIAL_SCALE
    """A power of two, so that scaling and unscaling are exact."""
    good_steps: int = 0
    """Since the scale last changed."""

    def after(self, *, is_finite: bool) -> "LossScale":
        """Return the state after a step: smaller if its gradients overflowed, larger after many good ones."""
        if not is_finite:
            return LossScale(scale=self.scale * BACKOFF)
        if self.good_steps + 1 == GROWTH_INTERVAL:
            return LossScale(scale=self.scale * GROWTH)
        return LossScale(scale=self.scale, good_steps=self.good_steps + 1)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0 and self.good_steps >= 0):
            raise ValueError(f"scale is {self.scale} after {self.good_steps} good steps")


class LossScaler:
    """Scales the losses of fp16, so that gradients do not vanish, and skips steps in which they overflow."""

    def __init__(self, world: World) -> None:
        self.state = LossScale()
        self.is_finite = True
        """Whether the last step's gradients were finite, on all ranks."""
        self._world = world

    def unscale(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Divide the summed gradients by the scale; agree with all ranks whether the step counts.

        Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2.
        """
        overflowed = torch.zeros(1)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(1 / self.state.scale)
                if not bool(torch.isfinite(parameter.grad).all()):
                    overflowed.fill_(1)
        if self._world.control is not None:
            with waiting_for("all ranks to say whether their gradients are finite"):
                dist.all_reduce(overflowed, op=dist.ReduceOp.MAX, group=self._world.control)
        self.is_finite = not overflowed.item()

    def accepts(self, parameters: Iterable[torch.nn.Parameter]) -> bool:
        """Adapt the scale and return whether the step counts; if not, its gradients are cleared."""
        self.state = self.state.after(is_finite=self.is_finite)
        if not self.is_finite:
            for parameter in parameters:
                parameter.grad = None
        return self.is_finite


def make_loss_scaler(autocast: str | None, schedule: str, world: World) -> LossScaler | None:
    """Return the scaler that a run needs: with fp16 only.

    Raises:
        InputError: the schedule has no flush, so its ranks update at different times and cannot agree.
    """
    if autocast != "float16":
        return None
    if schedule in FLUSHLESS:
        raise InputError(
            f"--precision fp16 scales the loss, on which all ranks must agree at every update; schedule "
            f"{schedule} has no flush: use bf16, or a schedule with flush"
        )
    return LossScaler(world)
