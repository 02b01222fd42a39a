"""A session: one rank's stages, ready to run steps. The library that the train command is built on.

session = Session.start(Path("stages"), "task.py", world, settings)
losses = session.train_step(data, step=0)      # forward, backward, gradient sum, update
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from stagewright.plan import Plan, Replica
from stagewright.schedule import Schedule
from stagewright.scheduling import forward_schedule, make_schedule
from stagewright.task import Task, load_task

from .batches import MicrobatchData
from .execution.exchange import Exchange
from .execution.executor import Batches, Executor, Measurement, rank_program
from .execution.randomness import LayerSeeds, seeded
from .execution.recompute import RecomputingRunner
from .execution.replicas import Reduction
from .execution.stage import StageRunner
from .execution.values import Precision
from .faults import waiting_for
from .storage.package import StagePackage, build_original, load_package, make_stage, share_tensors
from .storage.weights import (
    gather_weights,
    load_weights,
    spread_initial_weights,
    state_of_stages,
    tensors_of_stages,
    with_tied_names,
)
from .updating import clip_gradients, make_optimizer, rate_at
from .world import World, check_world_size, shake_hands


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train; the same on every rank."""

    optimizer: str = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.9
    """SGD only."""
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
    dtype: str | None = None
    """None: the plan's."""
    weights: Path | None = None
    """A safetensors file to start from; None: what the task's factory builds under the seed."""

    def make_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer | None:
        """Return the optimizer of one rank's parameters; None if it has none to train."""
        if not parameters:
            return None
        options: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        if self.optimizer.lower() == "sgd":
            options["momentum"] = self.momentum
        return make_optimizer(self.optimizer, parameters, options | dict(self.optimizer_options))


MEASURED_STEPS = 1000
"""Times of the last so many steps are kept for the report: a long training must not fill the memory."""


@dataclass
class StepTimes:
    """What one training step took on this rank, measured, in seconds."""

    actions: list[Measurement]
    step_s: float
    reduce_s: float
    update_s: float | None = None
    """None: this rank has nothing to update."""


class Session:
    """One rank of a plan."""

    def __init__(self, package: StagePackage, task: Task, world: World, settings: Settings) -> None:
        """Build this rank's stages and fill them; every rank calls this at the same time.

        Raises:
            InputError: the plan has another number of ranks, is of another model, or ranks differ.
        """
        plan = package.plan
        check_world_size(plan, world.size)
        self.package, self.task, self.world, self.settings = package, task, world, settings
        self.measured: deque[StepTimes] = deque(maxlen=MEASURED_STEPS)
        self.num_steps_run = 0
        shake_hands(world, package.plan_sha256, {"settings": repr(settings)})
        run_dtype = settings.dtype or plan.dtype
        self.dtype = getattr(torch, run_dtype)
        self._pipeline = plan.pipeline()
        self._program = rank_program(self._pipeline, self.rows, world.rank)
        runners = {
            index: (RecomputingRunner if stage.recompute else StageRunner)(
                index,
                make_stage(package, index, self._original, self.dtype, world.device),
                plan.borders,
            )
            for index, stage in enumerate(plan.stages)
            if any(replica.rank == world.rank for replica in stage.replicas)
        }
        self.modules = [runner.module for runner in runners.values()]
        share_tensors(self.modules, package.tied)
        self.left_out = self._load_initial_weights()
        """On rank 0 the entries of the original's state dict that no rank holds; else nothing."""
        seeds = LayerSeeds(settings.seed)
        for module in self.modules:
            module.before_random = seeds  # type: ignore[assignment]
        exchange = Exchange(
            plan.borders,
            Precision(plan.dtype, run_dtype),
            world.device,
            world.values,
            world.gradients,
        )
        self.executor = Executor(
            runners,
            exchange,
            seeds,
            world.device,
            plan.slowdowns.get(self.replica.device_type, 1.0),
        )
        self.reduction = Reduction(self.modules, package.tied, world)
        self.optimizer = settings.make_optimizer(list(self.reduction.parameters.values()))
        self._units_since_averaging = 0

    @classmethod
    def start(cls, directory: Path, task: str, world: World, settings: Settings) -> "Session":
        """Return a session for a generated package and a task, both by name."""
        return cls(load_package(directory), load_task(task), world, settings)

    @property
    def plan(self) -> Plan:
        return self.package.plan

    @cached_property
    def rows(self) -> Schedule:
        """What every rank does in a training step."""
        if self.settings.schedule is None:
            return self.plan.rows
        return make_schedule(self.settings.schedule, self.plan.pipeline())

    @cached_property
    def replica(self) -> Replica:
        """This rank's place in the plan (its first, if it runs several stages)."""
        replicas = (replica for stage in self.plan.stages for replica in stage.replicas)
        return next(replica for replica in replicas if replica.rank == self.world.rank)

    @property
    def is_loss_rank(self) -> bool:
        return any(replica.rank == self.world.rank for replica in self.plan.stages[-1].replicas)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """This rank's parameters and buffers by original name."""
        return tensors_of_stages(self.modules)

    def compute_gradients(self, data: Batches, step: int) -> dict[int, float]:
        """Run one step's schedule and sum the gradients; return this rank's losses.

        The loss of a micro-batch is weighted by its share of the samples, so the sum of all returned values
        over all ranks is the mean loss of the step.

        Raises:
            PeerLostError: another rank died or is stuck.
        """
        sizes = [data.size_of(microbatch) for microbatch in range(self._pipeline.num_microbatches)]
        total = sum(sizes)
        loss_of = self.task.function("loss") if self.is_loss_rank else None
        losses: dict[int, torch.Tensor] = {}

        def finish(output: Any, *, target: Any, microbatch: int) -> torch.Tensor:
            assert loss_of is not None
            loss: torch.Tensor = loss_of(output, target) * (sizes[microbatch] / total)
            losses[microbatch] = loss.detach()
            return loss

        start_s = time.perf_counter()
        measured = self.executor.run(self._pipeline, self._program, data, step, finish)
        self._units_since_averaging += sum(m.action.kind == "F" for m in measured)
        reduce_s = time.perf_counter()
        self.reduction.sum_gradients()
        end_s = time.perf_counter()
        self.measured.append(StepTimes(measured, end_s - start_s, end_s - reduce_s))
        self.num_steps_run += 1
        return {microbatch: loss.item() for microbatch, loss in losses.items()}

    def update(self, step: int, num_steps: int) -> None:
        """Clip the summed gradients, apply the optimizer to them and clear them.

        Args:
            step: steps done before this one.
            num_steps: of the whole training, for the learning rate.
        """
        settings = self.settings
        start_s, cpu_s = time.perf_counter(), time.thread_time()
        if settings.clip_norm is not None:
            clip_gradients(self.reduction, settings.clip_norm, self.world)
        if self.optimizer is None:
            return
        rate = rate_at(settings.rate_schedule, step, num_steps, settings.warm_up_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.executor.emulate(start_s, cpu_s)
        spent_s = time.perf_counter() - start_s
        self.measured[-1].update_s = spent_s
        self.measured[-1].step_s += spent_s

    def train_step(
        self, data: Batches, step: int, num_steps: int | None = None
    ) -> dict[int, float]:
        """Run one whole step; return this rank's weighted losses by micro-batch.

        num_steps of the whole training is needed where the learning rate falls.
        """
        losses = self.compute_gradients(data, step)
        self.update(step, step + 1 if num_steps is None else num_steps)
        return losses

    def evaluate(self, data: MicrobatchData, num_microbatches: int) -> tuple[float, float | None]:
        """Return the mean loss and the mean metric (None if the task has none) over some micro-batches."""
        pipeline = self.plan.pipeline(num_microbatches)
        rows = forward_schedule(pipeline)
        program = rank_program(pipeline, rows, self.world.rank, forward_only=True)
        loss_of = self.task.function("loss") if self.is_loss_rank else None
        metric_of = self.task.function("metric") if self.task.has("metric") else None
        sums = torch.zeros(3, dtype=torch.float64)

        def finish(output: Any, *, target: Any, microbatch: int) -> torch.Tensor:
            assert loss_of is not None
            size = data.size_of(microbatch)
            loss: torch.Tensor = loss_of(output, target)
            metric = float(metric_of(output, target)) if metric_of is not None else 0.0
            sums.add_(torch.tensor([size, float(loss) * size, metric * size], dtype=torch.float64))
            return loss

        self.average_buffers()
        with torch.no_grad(), self._evaluating():
            self.executor.run(pipeline, program, data, 0, finish)
        if self.world.control is not None:
            with waiting_for("the sum of the evaluation"):
                dist.all_reduce(sums, group=self.world.control)
        samples, loss_sum, metric_sum = sums.tolist()
        return loss_sum / samples, metric_sum / samples if metric_of is not None else None

    def average_buffers(self) -> None:
        """Make the buffers of replicas equal (see Reduction.average_buffers)."""
        self.reduction.average_buffers(self._units_since_averaging)
        self._units_since_averaging = 0

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Put the stages in eval mode, in which nothing is random."""
        for module in self.modules:
            module.eval()
        try:
            yield
        finally:
            for module in self.modules:
                module.train()

    def _load_initial_weights(self) -> dict[str, torch.Tensor]:
        start, tied = self.world.start, self.package.tied
        if self.settings.weights is not None:
            return load_weights(self.tensors, self.settings.weights, start, tied)
        return spread_initial_weights(self.tensors, self._original_in_dtype, start, tied)

    def final_weights(self) -> dict[str, torch.Tensor] | None:
        """Return the original model's state dict on rank 0, None elsewhere; every rank calls this."""
        self.average_buffers()
        gathered = gather_weights(state_of_stages(self.modules), self.world.control)
        if gathered is None:
            return None
        return with_tied_names(gathered | self.left_out, self.package.tied)

    def _original(self) -> torch.nn.Module:
        return build_original(self.task, self.plan.factory)

    def _original_in_dtype(self) -> torch.nn.Module:
        with seeded(self.settings.seed):
            return self._original().to(self.dtype)
