"""The original model, trained in this process with the random numbers that a run of its plan draws."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from stagewright.plan import Plan
from stagewright.runtime.execution.executor import Batches
from stagewright.runtime.execution.randomness import LayerSeeds, seeded
from stagewright.runtime.storage.package import build_original
from stagewright.schedule import Unit
from stagewright.task import Task


class OneProcess:
    """The model that ranks are compared with.

    Random modules are seeded as the ranks' are. Random functions, which hooks do not see, are not.
    """

    def __init__(
        self, plan: Plan, task: Task, seed: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        with seeded(seed):
            self.model = build_original(task, plan.factory).to(device, dtype)
        self._plan = plan
        self._loss_of = task.function("loss")
        self._seeds = LayerSeeds(seed)
        _seed_random_layers(self.model, self._seeds)

    def backward(
        self,
        step: int,
        data: Batches,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> dict[int, float]:
        """Add a step's gradients to the parameters'; return each micro-batch's part of the mean loss."""
        total = sum(data.size_of(m) for m in range(self._plan.num_microbatches))
        losses = {}
        for microbatch in range(self._plan.num_microbatches):
            self._seeds.begin(step, Unit(microbatch))
            values = data.inputs_of(microbatch, [value.layer for value in self._plan.inputs])
            by_key = {value.key: values[value.layer] for value in self._plan.inputs}
            positional = [by_key[key] for key in sorted(k for k in by_key if isinstance(k, int))]
            keywords = {key: value for key, value in by_key.items() if isinstance(key, str)}
            with autocast():
                output = self.model(*positional, **keywords)
                loss = self._loss_of(output, data.target_of(microbatch))
                loss = loss * (data.size_of(microbatch) / total)
            loss.backward()
            losses[microbatch] = loss.item()
        return losses


def _seed_random_layers(model: torch.nn.Module, seeds: LayerSeeds) -> None:
    """Seed before every call of a module without children, by its path and the number of the call."""
    calls: dict[str, int] = {}

    def before(path: str) -> Any:
        def hook(module: torch.nn.Module, _: Any) -> None:
            calls[path] = calls.get(path, 0) + 1
            number = calls[path]
            seeds(path if number == 1 else f"{path}@{number}")

        return hook

    def start(module: torch.nn.Module, _: Any) -> None:
        calls.clear()

    model.register_forward_pre_hook(start)
    for path, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_pre_hook(before(path))
