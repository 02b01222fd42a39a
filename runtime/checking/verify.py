"""Verification: one step of a plan against one process that runs the original model.

Both see the same weights, micro-batches and random numbers. Rank 0 runs the original model beside the plan
and compares the loss and every gradient. A task without a loss is given a fixed random projection of the
model's outputs, one without a dataset its example inputs (floating-point ones replaced by random numbers).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from stagewright.document import Record
from stagewright.plan import Plan
from stagewright.runtime.execution.executor import Batches
from stagewright.runtime.execution.randomness import seed_of, seeded
from stagewright.runtime.execution.stage import Values
from stagewright.runtime.messages.values import tensors_in
from stagewright.runtime.ranks.faults import waiting_for
from stagewright.runtime.ranks.world import World
from stagewright.runtime.session import Session
from stagewright.runtime.storage.package import StagePackage
from stagewright.runtime.storage.weights import save_tensors
from stagewright.runtime.training.data import TrainingData
from stagewright.runtime.training.settings import Settings
from stagewright.task import Task

from .one_process import OneProcess

TOLERANCES = {"float64": 1e-11, "float32": 1e-3, "bfloat16": 2**-6, "float16": 2**-9}
"""By the dtype that forwards compute in: largest relative difference that rounding explains.

A gradient's is relative to its largest entry. In float32 sums over micro-batches have another order; in mixed
precision, too, gradients of a value that several stages take are added in that dtype.
"""


class Verification(Record):
    """How far one step of the plan is from one process, in one dtype."""

    dtype: str
    loss: float
    """One process's."""
    loss_difference: float
    """Relative."""
    worst_gradient: str
    """The parameter whose gradient differs most."""
    worst_difference: float
    """Relative to the largest entry of one process's gradient."""
    num_gradients: int
    tolerance: float

    @property
    def passed(self) -> bool:
        return max(self.loss_difference, self.worst_difference) <= self.tolerance


@dataclass(frozen=True)
class ExampleData(Batches):
    """The example inputs as micro-batches, for a task without a dataset; there are no targets."""

    task: Task
    plan: Plan
    dtype: torch.dtype
    device: torch.device
    seed: int

    def size_of(self, microbatch: int) -> int:
        return self.plan.microbatch_size

    def target_of(self, microbatch: int) -> Any:
        return None

    def inputs_of(self, microbatch: int, layers: Sequence[str]) -> Values:
        keys = {value.layer: value.key for value in self.plan.inputs}
        with seeded(seed_of(self.seed, microbatch, "example")):
            example = self.task.call("example_input", self.plan.microbatch_size)
            if isinstance(example, torch.Tensor):
                example = (example,)
            named = example if isinstance(example, dict) else dict(enumerate(example))
            values = {key: self._random(named[key]) for key in keys.values()}
        return {layer: values[keys[layer]] for layer in layers if layer in keys}

    def _random(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.is_floating_point():
            value = torch.randn(value.shape, dtype=torch.float64).to(self.dtype)
        return value.to(self.device)


def projection(output: Any, target: Any) -> torch.Tensor:
    """Return a fixed random combination of all that a model returns; the stand-in for a loss."""
    tensors = [t for t in tensors_in(output) if t.is_floating_point()]
    total = torch.zeros((), dtype=tensors[0].dtype, device=tensors[0].device)
    for place, tensor in enumerate(tensors):
        generator = torch.Generator().manual_seed(seed_of(place, "projection"))
        weights = torch.randn(tensor.shape[1:], generator=generator, dtype=torch.float64)
        total = total + (tensor * weights.to(tensor)).sum() / max(1, tensor.numel())
    return total


def verify(
    package: StagePackage, task: Task, world: World, settings: Settings, save: Path | None = None
) -> Verification | None:
    """Run one step both ways; return the comparison on rank 0, None elsewhere.

    Args:
        package: the generated stages.
        task: with or without loss and dataset.
        world: this rank's; every rank calls this at the same time.
        settings: their dtype is the one compared in.
        save: where to write one process's weights, losses and gradients (safetensors).
    """
    if not task.has("loss"):
        task = _with_loss(task)
    session = Session(package, task, world, settings)
    data = _data(session)
    weighted = session.compute_gradients(data, 0)
    own = {
        name: None if p.grad is None else p.grad.detach().cpu()
        for name, p in session.reduction.parameters.items()
        if name in session.reduction.owned
    }
    everyone: list[Any] = [(weighted, own)]
    if world.control is not None:
        everyone = [None] * world.size
        with waiting_for("the gradients of all ranks"):
            dist.all_gather_object(everyone, (weighted, own), group=world.control)
    if world.rank != 0:
        return None
    losses = {microbatch: loss for found, _ in everyone for microbatch, loss in found.items()}
    gradients = {name: gradient for _, found in everyone for name, gradient in found.items()}
    device, dtype = world.device, session.dtype
    one = OneProcess(session.plan, task, settings.seed, device, dtype)
    expected_losses = one.backward(0, data, session.autocast)
    expected = {n: p.grad for n, p in one.model.named_parameters() if p.requires_grad}
    if save is not None:
        _save(save, one.model, expected_losses)
    compared = session.precision.run_autocast or session.precision.run
    found_loss, loss = (sum(each[m] for m in sorted(each)) for each in (losses, expected_losses))
    apart = {name: _difference(gradients.get(name), expected[name]) for name in sorted(expected)}
    worst = max(apart, key=lambda name: apart[name])
    return Verification(
        dtype=compared,
        loss=loss,
        loss_difference=abs(found_loss - loss) / max(abs(loss), 1e-300),
        worst_gradient=worst,
        worst_difference=apart[worst],
        num_gradients=len(expected),
        tolerance=TOLERANCES[compared],
    )


def _data(session: Session) -> Batches:
    plan, task, seed = session.plan, session.task, session.settings.seed
    if not task.has("dataset"):
        return ExampleData(task, plan, session.dtype, session.world.device, seed)
    return TrainingData(session).of_step(0)


def _with_loss(task: Task) -> Task:
    """Return the task with the projection as its loss."""
    module = ModuleType(task.module.__name__)
    vars(module).update(vars(task.module))
    vars(module)["loss"] = projection
    return replace(task, module=module)


def _difference(found: torch.Tensor | None, expected: torch.Tensor | None) -> float:
    """Return the largest difference relative to the largest entry expected; infinite if one is missing."""
    if found is None or expected is None:
        return 0.0 if found is expected else float("inf")
    if not expected.numel():
        return 0.0
    scale = float(expected.abs().max())
    apart = float((found.to(expected.device) - expected).abs().max())
    return apart / scale if scale else (0.0 if apart == 0 else float("inf"))


def _save(path: Path, model: torch.nn.Module, losses: dict[int, float]) -> None:
    tensors = {f"weight:{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            tensors[f"gradient:{name}"] = parameter.grad
    tensors["losses"] = torch.tensor([losses[m] for m in sorted(losses)], dtype=torch.float64)
    save_tensors(path, tensors, {})
