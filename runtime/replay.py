"""Replay: a plan's schedule with its real ranks and messages, sleeping in place of computing.

It checks a prediction for many ranks on a small machine, and a network before a run. Computations take what
the plan predicts, by sleeping; so do gradient sums and updates. Messages are real: as many bytes between the
same ranks in the same order as in training.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from stagewright.document import Record
from stagewright.plan import Plan, ReplicaPrediction
from stagewright.program import Send
from stagewright.scheduling import make_schedule
from stagewright.value import tensors_of

from .execution.exchange import Exchange
from .execution.executor import Executor, rank_program
from .execution.randomness import LayerSeeds
from .execution.stage import Values
from .execution.values import Precision, empty_like_spec
from .faults import waiting_for
from .world import World

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


class SleepingStage:
    """A stage that sleeps as long as its plan predicts and sends tensors of the right sizes."""

    def __init__(
        self, index: int, plan: Plan, predicted: ReplicaPrediction, device: torch.device
    ) -> None:
        self.index = index
        self._plan = plan
        self._predicted = predicted
        self._precision = Precision(plan.dtype, plan.dtype)
        self._device = device

    @property
    def input_names(self) -> tuple[str, ...]:
        return ()

    def forward(
        self,
        microbatch: int,
        batch_size: int,
        inputs: Values,
        received: dict[int, list[torch.Tensor]],
        finish: Callable[[Any], torch.Tensor] | None,
    ) -> dict[int, list[torch.Tensor]]:
        _sleep(self._predicted.forward_ms)
        return {
            border.target: self._tensors(border.source, border.target, batch_size, backward=False)
            for border in self._plan.borders
            if border.source == self.index
        }

    def backward(
        self, microbatch: int, arrived: dict[int, list[torch.Tensor]]
    ) -> dict[int, list[torch.Tensor]]:
        _sleep(self._predicted.backward_ms)
        return self._gradients()

    def backward_of_inputs(
        self, microbatch: int, arrived: dict[int, list[torch.Tensor]]
    ) -> dict[int, list[torch.Tensor]]:
        _sleep(self._predicted.backward_ms / 2)
        return self._gradients()

    def backward_of_weights(self, microbatch: int) -> None:
        _sleep(self._predicted.backward_ms / 2)

    def _gradients(self) -> dict[int, list[torch.Tensor]]:
        size = self._plan.microbatch_size
        return {
            border.source: self._tensors(border.source, border.target, size, backward=True)
            for border in self._plan.borders
            if border.target == self.index
        }

    def _tensors(
        self, source: int, target: int, batch_size: int, *, backward: bool
    ) -> list[torch.Tensor]:
        border = next(b for b in self._plan.borders if (b.source, b.target) == (source, target))
        specs = [spec for value in border.values for spec in tensors_of(value.spec)]
        return [
            empty_like_spec(spec, batch_size, self._precision, self._device)
            for spec in specs
            if spec.requires_grad or not backward
        ]


class _NoData:
    """Batches of the plan's size, with nothing in them."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def size_of(self, microbatch: int) -> int:
        return self._plan.microbatch_size

    def inputs_of(self, microbatch: int, layers: Sequence[str]) -> Values:
        return {}

    def target_of(self, microbatch: int) -> Any:
        return None


def replay(plan: Plan, world: World, num_steps: int, schedule: str | None = None) -> Replay | None:
    """Replay some steps; return the comparison on rank 0, None elsewhere.

    Raises:
        PeerLostError: another rank died or is stuck.
    """
    pipeline = plan.pipeline()
    rows = plan.rows if schedule is None else make_schedule(schedule, pipeline)
    program = rank_program(pipeline, rows, world.rank)
    own = [
        (index, replica.predicted)
        for index, stage in enumerate(plan.stages)
        for replica in stage.replicas
        if replica.rank == world.rank
    ]
    stages = {i: SleepingStage(i, plan, predicted, world.device) for i, predicted in own}
    precision = Precision(plan.dtype, plan.dtype)
    exchange = Exchange(plan.borders, precision, world.device, world.values, world.gradients)
    executor = Executor(stages, exchange, LayerSeeds(0), world.device)
    end_ms = sum(predicted.reduce_ms + predicted.update_ms for _, predicted in own)
    times_ms = []
    for step in range(WARM_UP_STEPS + num_steps):
        if world.control is not None:
            with waiting_for("all ranks to start a step"):
                dist.barrier(group=world.control)
        start_s = time.perf_counter()
        executor.run(pipeline, program, _NoData(plan), step, None)
        _sleep(end_ms)
        times_ms.append((time.perf_counter() - start_s) * 1e3)
    sent = [instruction.message for instruction in program if isinstance(instruction, Send)]
    counts = Counter((message.receiver, message.edge, message.forward) for message in sent)
    traffic = Counter[int]()
    messages = Counter[int]()
    for (receiver, edge, forward), count in counts.items():
        specs = exchange.specs_of(edge, forward=forward)
        messages[receiver] += count
        traffic[receiver] += count * sum(s.bytes_at(plan.microbatch_size) for s in specs)
    result = (times_ms[WARM_UP_STEPS:], [(r, messages[r], traffic[r]) for r in sorted(messages)])
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


def _sleep(duration_ms: float) -> None:
    if duration_ms > 0:
        time.sleep(duration_ms / 1e3)
