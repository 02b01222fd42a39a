"""A session: one rank's stages, ready to run steps. The library that the train command is built on.

session = Session.start(Path("stages"), "task.py", world, settings)
losses = session.train_step(data, step=0)      # forward, backward, gradient sum, update
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from stagewright.flushless import FLUSHLESS
from stagewright.plan import Plan, Replica
from stagewright.program import channels_of
from stagewright.schedule import Schedule, Unit
from stagewright.scheduling import forward_schedule, make_schedule
from stagewright.task import Task, load_task

from .execution.executor import Batches, Executor, Finish
from .execution.randomness import LayerSeeds, seeded
from .execution.rank_program import RankProgram, rank_program
from .execution.replicas import Reduction
from .execution.versions import VersionedRunner
from .messages.exchange import Exchange
from .messages.values import Precision
from .ranks.faults import waiting_for
from .ranks.whereabouts import place_of
from .ranks.world import World, check_world_size, shake_hands
from .storage.package import StagePackage, build_original, load_package
from .storage.weights import (
    gather_weights,
    load_weights,
    spread_initial_weights,
    state_of_stages,
    tensors_of_stages,
    with_tied_names,
)
from .training.batches import MicrobatchData
from .training.flushless import BatchesOfSteps, WindowTraining, refuse_shared_parameters
from .training.memory import PeakMemory
from .training.precision import autocast_dtype, make_loss_scaler
from .training.settings import Settings, options_that_agree
from .training.stages import make_runners
from .training.step_times import MEASURED_STEPS, StepTimes
from .training.updating import clip_gradients

GIVEN_ROWS = "given by the user"
"""The name of a schedule that is given as rows."""


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
        world.whereabouts.place = place_of(plan, world.rank)
        self.measured: deque[StepTimes] = deque(maxlen=MEASURED_STEPS)
        self.num_steps_run = 0
        self.memory = PeakMemory(world.device, is_wanted=settings.measure_memory)
        versions = {"plan": package.plan_sha256[:16], "torch": str(torch.__version__)}
        shake_hands(world, versions | options_that_agree(settings))
        run_dtype = settings.dtype or plan.dtype
        self.dtype = getattr(torch, run_dtype)
        autocast = autocast_dtype(plan, settings.precision, run_dtype)
        self.precision = Precision(plan.dtype, run_dtype, plan.autocast, autocast)
        self.scaler = make_loss_scaler(autocast, self.schedule, world)
        slicing = settings.slicing
        pipeline = plan.pipeline(self.microbatches_per_step)
        num_slices = 1 if slicing is None else slicing.num_slices
        self._pipeline = replace(pipeline, num_slices=num_slices)
        self._program = rank_program(self._pipeline, self.rows, world.rank)
        runners = make_runners(
            package, world.rank, self._original, self.dtype, world.device, self.precision, slicing
        )
        self.modules = [runner.module for runner in runners.values()]
        self.left_out = self._load_initial_weights()
        """On rank 0 the entries of the original's state dict that no rank holds; else nothing."""
        seeds = LayerSeeds(settings.seed, self.microbatches_per_step)
        for module in self.modules:
            module.before_random = seeds  # type: ignore[assignment]
        is_flushless = self.schedule in FLUSHLESS
        versioned = {i: VersionedRunner(r) for i, r in runners.items() if is_flushless}
        exchange = Exchange(plan.borders, self.precision, world, slicing)
        self.executor = Executor(
            versioned or runners,
            exchange.connected(channels_of(pipeline), world),
            seeds,
            world.device,
            plan.slowdowns.get(self.replica.device_type, 1.0),
            world.whereabouts,
            slicing,
        )
        self.reduction = Reduction({i: r.module for i, r in runners.items()}, package.tied, world)
        self._overlapped = (
            self.reduction.sums.overlap(self._program.instructions) if settings.overlap else {}
        )
        self.optimizer = settings.make_optimizer(list(self.reduction.parameters.values()))
        self._units_since_averaging = 0
        self._evaluations: dict[int, RankProgram] = {}
        self.windows: WindowTraining | None = None  # With flush.
        if is_flushless:
            refuse_shared_parameters(self.schedule, plan, self.reduction.holders)
            (runner,) = versioned.values()
            self.windows = WindowTraining(
                self.schedule, self._pipeline, world.rank, self.executor, runner, self.reduction
            )

    @classmethod
    def start(cls, directory: Path, task: str, world: World, settings: Settings) -> "Session":
        """Return a session for a generated package and a task, both by name."""
        return cls(load_package(directory), load_task(task), world, settings)

    @property
    def plan(self) -> Plan:
        return self.package.plan

    @property
    def schedule(self) -> str:
        if self.settings.rows is not None:
            return GIVEN_ROWS
        return self.settings.schedule or self.plan.schedule

    @property
    def microbatches_per_step(self) -> int:
        """How many an update sums over."""
        return self.settings.update_window or self.plan.num_microbatches

    @property
    def batch_size(self) -> int:
        """Samples in one step."""
        return self.microbatches_per_step * self.plan.microbatch_size

    @cached_property
    def rows(self) -> Schedule:
        """What every rank does in a training step that stands alone."""
        if self.settings.rows is not None:
            return self.settings.rows
        return make_schedule(self.schedule, self._pipeline)

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

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context that a forward and its loss run in: torch.autocast, or nothing."""
        return self.precision.context(self.world.device)

    def compute_gradients(self, data: Batches, step: int) -> dict[int, float]:
        """Run one step's schedule and sum the gradients; return this rank's losses.

        The loss of a micro-batch is weighted by its share of the samples, so the sum of all returned values
        over all ranks is the mean loss of the step.

        Raises:
            PeerLostError: another rank died or is stuck.
        """
        losses: dict[int, torch.Tensor] = {}
        finish = self._weighted_loss(data, losses)
        self.world.whereabouts.enter(f"step {step + 1}")
        self.executor.traffic.take()
        start_s = time.perf_counter()
        alone = (
            self.windows.standing_alone(self._program.instructions)
            if self.windows
            else nullcontext()
        )
        with alone:
            measured = self.executor.run(self._program, data, step, finish, around=self._overlapped)
        self._units_since_averaging += sum(m.action.kind == "F" for m in measured)
        reduce_s = time.perf_counter()
        self.reduction.sum_gradients()
        if self.scaler is not None:
            self.scaler.unscale(self.reduction.parameters.values())
        end_s = time.perf_counter()
        self.measured.append(
            StepTimes(
                actions=measured,
                start_s=start_s,
                step_s=end_s - start_s,
                reduce_s=end_s - reduce_s,
                sent=self.executor.traffic.take(),
            )
        )
        self.num_steps_run += 1
        return {microbatch: loss.item() for microbatch, loss in losses.items()}

    def _weighted_loss(self, data: Batches, losses: dict[int, torch.Tensor]) -> Finish | None:
        """Return what weights a loss by its part of the step's samples and notes it; None on other ranks.

        The loss of a slice counts as its part of the positions, as in a mean over all of them.
        """
        if not self.is_loss_rank:
            return None
        loss_of, per_step = self.task.function("loss"), self.microbatches_per_step
        slicing = self.settings.slicing

        def finish(output: Any, *, target: Any, unit: Unit) -> torch.Tensor:
            microbatch = unit.microbatch
            first = microbatch - microbatch % per_step
            total = sum(data.size_of(m) for m in range(first, first + per_step))
            weight = data.size_of(microbatch) / total
            if slicing is not None:
                weight *= slicing.part_of(unit.slice)
            loss: torch.Tensor = loss_of(output, target) * weight
            of_others = losses.get(microbatch)
            losses[microbatch] = loss.detach() if of_others is None else of_others + loss.detach()
            return loss if self.scaler is None else loss * self.scaler.state.scale

        return finish

    def update(self, step: int, num_steps: int) -> None:
        """Clip the summed gradients, apply the optimizer to them and clear them.

        With fp16, gradients that overflowed on any rank are cleared on all and nothing else is done.

        Args:
            step: steps done before this one.
            num_steps: of the whole training, for the learning rate.
        """
        settings = self.settings
        begin_s = time.perf_counter()
        if self.scaler is not None and not self.scaler.accepts(self.reduction.parameters.values()):
            return
        if settings.clip_norm is not None:
            norm = clip_gradients(
                self.reduction, settings.clip_norm, None if self.windows else self.world
            )
            self.measured[-1].gradient_norm = None if self.windows else norm
        start_s, cpu_s = time.perf_counter(), time.thread_time()  # clipping waits for other ranks
        self.measured[-1].step_s += start_s - begin_s
        if self.optimizer is None:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(step, num_steps)
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
        buffers = self.executor.buffer_bytes
        with self.memory.watch(self.num_steps_run, self.tensors, self.optimizer, buffers):
            losses = self.compute_gradients(data, step)
            self.update(step, step + 1 if num_steps is None else num_steps)
        return losses

    def train_steps(
        self, data_of: Callable[[int], Batches], steps: range, num_steps: int
    ) -> list[tuple[StepTimes, dict[int, float]]]:
        """Run some steps, after which the pipeline is empty; return the times and the losses of each.

        Args:
            data_of: returns the data of a step.
            steps: which.
            num_steps: of the whole training, for the learning rate.
        """
        if self.windows is None:
            losses_of = (self.train_step(data_of(step), step, num_steps) for step in steps)
            return [(self.measured[-1], losses) for losses in losses_of]
        per_step = self.microbatches_per_step
        batches = BatchesOfSteps(data_of, steps.start, per_step)
        losses: dict[int, torch.Tensor] = {}
        finish = self._weighted_loss(batches, losses)
        done: list[tuple[StepTimes, dict[int, float]]] = []

        def update(step: int, times: StepTimes) -> None:
            self.measured.append(times)
            done.append((times, {}))
            self.num_steps_run += 1
            self.update(step, num_steps)

        self._units_since_averaging += self.windows.run(batches, steps, finish, update)
        for microbatch, loss in sorted(losses.items()):
            step, own = divmod(microbatch, per_step)
            done[step][1][own] = loss.item()
        return done

    def program_of(self, steps: range) -> RankProgram:
        """Return what this rank executes in a run of steps (`train_steps`)."""
        return self._program if self.windows is None else self.windows.program_of(len(steps))

    def evaluation_program(self, num_microbatches: int) -> RankProgram:
        """Return what this rank executes in an evaluation."""
        if num_microbatches not in self._evaluations:
            pipeline = self.plan.pipeline(num_microbatches)
            rows = forward_schedule(pipeline)
            program = rank_program(pipeline, rows, self.world.rank, forward_only=True)
            self._evaluations[num_microbatches] = program
        return self._evaluations[num_microbatches]

    def evaluate(self, data: MicrobatchData) -> tuple[float, float | None]:
        """Return the mean loss and the mean metric (None if the task has none) over some micro-batches."""
        loss_of = self.task.function("loss") if self.is_loss_rank else None
        metric_of = self.task.function("metric") if self.task.has("metric") else None
        sums = torch.zeros(3, dtype=torch.float64)

        def finish(output: Any, *, target: Any, unit: Unit) -> torch.Tensor:
            assert loss_of is not None
            size = data.size_of(unit.microbatch)
            loss: torch.Tensor = loss_of(output, target)
            metric = float(metric_of(output, target)) if metric_of is not None else 0.0
            sums.add_(torch.tensor([size, float(loss) * size, metric * size], dtype=torch.float64))
            return loss

        self.average_buffers()
        with torch.no_grad(), self._evaluating():
            self.executor.run(self.evaluation_program(len(data)), data, 0, finish)
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
        """Put the stages in eval mode, in which nothing is random; give each layer its own mode back."""
        modes = [(layer, layer.training) for module in self.modules for layer in module.modules()]
        for module in self.modules:
            module.eval()
        try:
            yield
        finally:
            for layer, mode in modes:
                layer.training = mode

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
