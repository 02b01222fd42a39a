"""The update: which optimizer, at which learning rate, and gradient clipping; alike on every rank."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from stagewright.document import InputError
from stagewright.runtime.execution.replicas import Reduction
from stagewright.runtime.ranks.faults import waiting_for
from stagewright.runtime.ranks.world import World

SHORT_NAMES = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
RATE_SCHEDULES = ("constant", "linear", "cosine")
_NEEDS_A_CLOSURE = ("LBFGS",)


def class_name(optimizer: str) -> str:
    """Return the name of an optimizer's class in torch.optim, however the user wrote it."""
    return SHORT_NAMES.get(optimizer, optimizer)


def make_optimizer(
    name: str, parameters: Iterable[torch.nn.Parameter], options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Return an optimizer of torch.optim by name ("adamw" or "AdamW").

    Raises:
        InputError: there is no such optimizer, it cannot be used here, or it does not take the options.
    """
    found: Any = getattr(torch.optim, class_name(name), None)
    is_optimizer = isinstance(found, type) and issubclass(found, torch.optim.Optimizer)
    if not is_optimizer or found is torch.optim.Optimizer or name in _NEEDS_A_CLOSURE:
        raise InputError(
            f"--optimizer is {name!r}, expected a class of torch.optim whose step needs no closure, "
            "such as sgd, adamw or RMSprop"
        )
    make: Callable[..., torch.optim.Optimizer] = found
    try:
        return make(list(parameters), **options)
    except (TypeError, ValueError) as error:
        raise InputError(f"--optimizer {name}: {error}; correct --optimizer-option") from None


def rate_at(schedule: str, step: int, num_steps: int, warm_up_steps: int) -> float:
    """Return the learning rate of a step as a part of the largest one.

    It rises linearly over the first warm_up_steps, then stays (constant), falls linearly or as half a cosine
    to 0 after num_steps. A pure function, so a resumed run needs no state of it.
    """
    if step < warm_up_steps:
        return (step + 1) / warm_up_steps
    if schedule == "constant" or num_steps <= warm_up_steps:
        return 1.0
    done = (step - warm_up_steps) / (num_steps - warm_up_steps)
    if schedule == "linear":
        return max(0.0, 1 - done)
    return (1 + math.cos(math.pi * min(1.0, done))) / 2


def clip_gradients(reduction: Reduction, most: float, world: World | None) -> float:
    """Scale all gradients so that their norm over all parameters of the model is at most `most`.

    Each parameter counts once, however many ranks hold it. Without a world the parameters are those of this
    rank's stage alone, and nothing is sent. Return the norm before.
    Source: torch.nn.utils.clip_grad_norm_, over ranks.
    """
    squares = torch.zeros((), dtype=torch.float64)
    for name in sorted(reduction.owned if world is not None else reduction.parameters):
        gradient = reduction.parameters[name].grad
        if gradient is not None:
            squares += gradient.double().pow(2).sum().cpu()
    if world is not None and world.control is not None:
        with waiting_for("the norm of all gradients"):
            dist.all_reduce(squares, group=world.control)
    norm = math.sqrt(squares.item())
    scale = most / (norm + 1e-6)
    if scale < 1:
        for parameter in reduction.parameters.values():
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
    return norm
