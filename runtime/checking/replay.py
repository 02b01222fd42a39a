"""Replay: a plan's schedule with its real ranks and messages, sleeping in place of computing.

It checks a prediction for many ranks on a small machine, and a network before a run. Computations take what
the plan predicts, by sleeping; so do gradient sums and updates. Messages are real: as many bytes between the
same ranks in the same order as in training. Without flush the steps are windows of one run, from update to
update.
"""

import itertools
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from stagewright.document import Record
from stagewright.flushless import FLUSHLESS, without_flush
from stagewright.plan import Border, Plan, ReplicaPrediction
from stagewright.program import Send, channels_of
from stagewright.runtime.execution.executor import Batches, Executor
from stagewright.runtime.execution.randomness import LayerSeeds
from stagewright.runtime.execution.rank_program import RankProgram, rank_program
from stagewright.runtime.execution.stage import UnitInputs, Values
from stagewright.runtime.messages.exchange import Exchange
from stagewright.runtime.messages.values import Payload, Precision, planned_layout
from stagewright.runtime.ranks.faults import waiting_for
from stagewright.runtime.ranks.world import World
from stagewright.schedule import Unit
from stagewright.scheduling import make_schedule, windows_to_fill
from stagewright.value import tensors_of

WARM_UP_STEPS = 2


class Traffic(Record):
    """What one rank sends another in a step."""

    sender: int
    receiver: int
    messages: int
    num_bytes: int


class Replay(Record):
    """A replayed step against the simulated one."""

    num_steps: int
    simulated_step_ms: float
    measured_step_ms: float
    """Median over the steps of the slowest rank, computing replaced by sleeping."""
    traffic: tuple[Traffic, ...]


class Sleeper:
    """Sleeps in place of computing, in all as long as it is told to.

    An operating system wakes a process too late, by a tenth of a millisecond or, where many ranks share a
    processor, by more. A device would not: what one sleep took too long, the next one is shortened by.
    """

    def __init__(self) -> None:
        self._late_s = 0.0

    def sleep_until(self, start_s: float, duration_ms: float) -> None:
        """Sleep until a duration after a start (of time.perf_counter) is over."""
        end_s = start_s + duration_ms / 1e3 - self._late_s
        left_s = end_s - time.perf_counter()
        if left_s > 0:
            time.sleep(left_s)
        self._late_s = time.perf_counter() - end_s


class SleepingStage:
    """A stage that sleeps as long as its plan predicts and sends tensors of the right sizes."""

    def __init__(
        self,
        index: int,
        plan: Plan,
        predicted: ReplicaPrediction,
        device: torch.device,
        sleeper: Sleeper,
    ) -> None:
        self.index = index
        self._sleeper = sleeper
        self._plan = plan
        self._predicted = predicted
        self._precision = Precision(plan.dtype, plan.dtype)
        self._device = device
        self._payloads: dict[tuple[int, int, int], Payload] = {}
        """By border and samples; what was sent once is sent again."""

    @property
    def input_names(self) -> tuple[str, ...]:
        return ()

    def forward(self, unit: Unit, given: UnitInputs) -> dict[int, Payload]:
        start_s = time.perf_counter()
        outputs = {
            border.target: self._payload(border, given.batch_size)
            for border in self._plan.borders
            if border.source == self.index
        }
        self._sleeper.sleep_until(start_s, self._predicted.action_ms("F"))
        return outputs

    def backward(
        self, unit: Unit, arrived: dict[int, list[torch.Tensor]]
    ) -> dict[int, list[torch.Tensor]]:
        return self._gradients(self._predicted.action_ms("B"))

    def backward_of_inputs(
        self, unit: Unit, arrived: dict[int, list[torch.Tensor]]
    ) -> dict[int, list[torch.Tensor]]:
        return self._gradients(self._predicted.action_ms("I"))

    def backward_of_weights(self, unit: Unit) -> None:
        self._sleeper.sleep_until(time.perf_counter(), self._predicted.action_ms("W"))

    def _gradients(self, duration_ms: float) -> dict[int, list[torch.Tensor]]:
        """Return what goes back after a duration."""
        start_s, size = time.perf_counter(), self._plan.microbatch_size
        gradients = {
            border.source: self._payload(border, size).trained
            for border in self._plan.borders
            if border.target == self.index
        }
        self._sleeper.sleep_until(start_s, duration_ms)
        return gradients

    def _payload(self, border: Border, batch_size: int) -> Payload:
        """Return a message of a border's size, estimated where it is ragged, of any content."""
        key = (border.source, border.target, batch_size)
        if key not in self._payloads:
            specs = [spec for value in border.values for spec in tensors_of(value.spec)]
            layout = planned_layout(specs, batch_size, self._precision)
            self._payloads[key] = Payload(
                [torch.empty(part.shape, dtype=part.dtype, device=self._device) for part in layout],
                [part.with_gradient for part in layout],
            )
        return self._payloads[key]


class _NoData(Batches):
    """Batches of the plan's size, with nothing in them."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def size_of(self, microbatch: int) -> int:
        return self._plan.microbatch_size

    def inputs_of(self, microbatch: int, layers: Sequence[str]) -> Values:
        return {}

    def target_of(self, microbatch: int) -> Any:
        return None


class _Run:
    """Runs programs and measures, in ms, what this rank's steps take."""

    def __init__(
        self, plan: Plan, world: World, executor: Executor, sleeper: Sleeper, end_ms: float
    ) -> None:
        """end_ms is the predicted gradient sum and update."""
        self._plan, self._world, self._executor = plan, world, executor
        self._sleeper, self._end_ms = sleeper, end_ms

    def steps(self, program: RankProgram, num_steps: int) -> list[float]:
        """Return the times of some steps with flush."""
        times_ms = []
        for step in range(WARM_UP_STEPS + num_steps):
            if self._world.control is not None:
                with waiting_for("all ranks to start a step"):
                    dist.barrier(group=self._world.control)
            start_s = time.perf_counter()
            self._executor.run(program, _NoData(self._plan), step, None)
            self._sleeper.sleep_until(time.perf_counter(), self._end_ms)
            times_ms.append((time.perf_counter() - start_s) * 1e3)
        return times_ms[WARM_UP_STEPS:]

    def windows(self, name: str, num_windows: int) -> list[float]:
        """Return the times from update to update in the steady state of a run without flush."""
        one = self._plan.pipeline()
        fill = max(WARM_UP_STEPS, windows_to_fill(one))
        pipeline = replace(
            without_flush(name, one, one.num_microbatches),
            num_microbatches=one.num_microbatches * (num_windows + 2 * fill),
        )
        program = rank_program(pipeline, make_schedule(name, pipeline), self._world.rank)
        group = self._group_of_stage()
        updated_s: list[float] = []

        def update(window: int) -> None:
            if group is not None:
                with waiting_for(f"the replicas of its stage to end window {window}"):
                    dist.barrier(group=group)
            self._sleeper.sleep_until(time.perf_counter(), self._end_ms)
            updated_s.append(time.perf_counter())

        self._executor.run(program, _NoData(self._plan), 0, None, update)
        steady_s = updated_s[fill - 1 : fill + num_windows]
        return [(after - before) * 1e3 for before, after in itertools.pairwise(steady_s)]

    def _group_of_stage(self) -> dist.ProcessGroup | None:
        """Return the group of its stage's replicas, if there are several; every rank calls this."""
        own = None
        for stage in self._plan.stages:
            ranks = [replica.rank for replica in stage.replicas]
            if len(ranks) > 1:
                group = self._world.group_of(ranks)
                own = group if self._world.rank in ranks else own
        return own


def replay(plan: Plan, world: World, num_steps: int, schedule: str | None = None) -> Replay | None:
    """Replay some steps; return the comparison on rank 0, None elsewhere.

    Raises:
        PeerLostError: another rank died or is stuck.
    """
    own = [
        (index, replica.predicted)
        for index, stage in enumerate(plan.stages)
        for replica in stage.replicas
        if replica.rank == world.rank
    ]
    sleeper = Sleeper()
    stages = {i: SleepingStage(i, plan, predicted, world.device, sleeper) for i, predicted in own}
    precision = Precision(plan.dtype, plan.dtype)
    channels = channels_of(plan.pipeline())
    exchange = Exchange(plan.borders, precision, world).connected(channels, world)
    executor = Executor(stages, exchange, LayerSeeds(0), world.device)
    end_ms = sum(predicted.reduce_ms + predicted.update_ms for _, predicted in own)
    name = schedule or plan.schedule
    pipeline = plan.pipeline()
    program = rank_program(pipeline, make_schedule(name, pipeline), world.rank)
    run = _Run(plan, world, executor, sleeper, end_ms)
    is_flushless = name in FLUSHLESS
    times_ms = run.windows(name, num_steps) if is_flushless else run.steps(program, num_steps)
    sent = [
        instruction.message for instruction in program.instructions if isinstance(instruction, Send)
    ]
    counts = Counter((message.receiver, message.edge, message.forward) for message in sent)
    traffic = Counter[int]()
    messages = Counter[int]()
    for (receiver, edge, forward), count in counts.items():
        specs = exchange.specs_of(edge, forward=forward)
        messages[receiver] += count
        traffic[receiver] += count * sum(s.bytes_at(plan.microbatch_size) for s in specs)
    result = (times_ms, [(r, messages[r], traffic[r]) for r in sorted(messages)])
    everyone: list[Any] = [result]
    if world.control is not None:
        everyone = [None] * world.size
        with waiting_for("the measurements of all ranks"):
            dist.all_gather_object(everyone, result, group=world.control)
    if world.rank != 0:
        return None
    return Replay(
        num_steps=num_steps,
        simulated_step_ms=plan.predicted_step_ms,
        measured_step_ms=statistics.median(
            max(step) for step in zip(*(times for times, _ in everyone), strict=True)
        ),
        traffic=tuple(
            Traffic(sender=sender, receiver=receiver, messages=count, num_bytes=num_bytes)
            for sender, (_, sends) in enumerate(everyone)
            for receiver, count, num_bytes in sends
        ),
    )
