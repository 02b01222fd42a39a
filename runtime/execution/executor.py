"""The executor: one rank walks its program of computations, sends and receives."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch.profiler import record_function

from stagewright.flushless import Update
from stagewright.program import (
    Instruction,
    Message,
    Receive,
    Send,
    compile_programs,
    messages_from,
    messages_to,
)
from stagewright.runtime.messages.exchange import Exchange
from stagewright.runtime.messages.slicing import Slicing
from stagewright.runtime.messages.values import Payload
from stagewright.runtime.ranks.whereabouts import Whereabouts
from stagewright.schedule import Action, Pipeline, Schedule, Unit

from .randomness import LayerSeeds
from .stage import UnitInputs, Values

ACTIONS_AHEAD = 2
"""How many computations before the one that needs it a receive is posted at least."""


class Batches(Protocol):
    """Where a rank gets the data of a step's micro-batches from."""

    def size_of(self, microbatch: int) -> int:
        """Return the number of samples in a micro-batch."""

    def inputs_of(self, microbatch: int, layers: Sequence[str]) -> Values:
        """Return the model's inputs of a micro-batch that some layers name."""

    def target_of(self, microbatch: int) -> Any:
        """Return the targets of a micro-batch."""

    def prepare(self, microbatch: int, layers: Sequence[str], *, with_target: bool) -> None:
        """Load what `inputs_of` and `target_of` will be asked for, if that takes time."""
        return


class RunsUnits(Protocol):
    """A stage as the executor sees it; StageRunner says what the methods do."""

    index: int

    @property
    def input_names(self) -> tuple[str, ...]: ...

    def forward(self, unit: Unit, given: UnitInputs) -> dict[int, Payload]: ...

    def backward(
        self, unit: Unit, arrived: dict[int, list[torch.Tensor]]
    ) -> dict[int, list[torch.Tensor]]: ...

    def backward_of_inputs(
        self, unit: Unit, arrived: dict[int, list[torch.Tensor]]
    ) -> dict[int, list[torch.Tensor]]: ...

    def backward_of_weights(self, unit: Unit) -> None: ...


class Finish(Protocol):
    """What the last stage does with the model's output of one unit."""

    def __call__(self, output: Any, *, target: Any, unit: Unit) -> torch.Tensor:
        """Return the tensor that the backward starts at: the weighted loss."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """When one action ran on this rank, in seconds of time.perf_counter."""

    action: Action
    start_s: float
    end_s: float
    device_s: float
    """What the device itself spent, times the emulated slowdown: without waits for a shared processor."""


@dataclass(frozen=True, slots=True)
class Around:
    """What one action takes and gives, found once for a program and not in every step."""

    arriving: tuple[Message, ...]
    leaving: tuple[Message, ...]
    next_forward: Action | None
    """If it waits for another rank: the forward, this or the next, whose data is loaded before."""


@dataclass(frozen=True)
class RankProgram:
    """What one rank executes."""

    instructions: tuple[Instruction, ...]
    around: Mapping[Action, Around]
    last_stage: int


class Executor:
    """Executes programs on one rank with its stages; the flush, the update and the data are its callers'."""

    def __init__(
        self,
        stages: Mapping[int, RunsUnits],
        exchange: Exchange,
        seeds: LayerSeeds,
        device: torch.device,
        slowdown: float = 1.0,
        whereabouts: Whereabouts | None = None,
        slicing: Slicing | None = None,
    ) -> None:
        """slowdown > 1 emulates a slower device: each computation is followed by a sleep.

        whereabouts is told every instruction before it begins; slicing is for programs with slices.
        """
        self.stages = stages
        self.traffic = exchange.traffic
        self._exchange = exchange
        self._seeds = seeds
        self._device = device
        self.names_actions = False
        """Whether a running torch.profiler sees the actions by name; costs some microseconds each."""
        self._slowdown = slowdown
        self._slicing = slicing
        self._local: dict[Message, Payload] = {}
        self._outgoing: dict[Message, Payload] = {}
        self.whereabouts = Whereabouts() if whereabouts is None else whereabouts

    @property
    def buffer_bytes(self) -> int:
        """The bytes of the receive buffers that it keeps between programs."""
        return self._exchange.buffer_bytes

    @property
    def buffers_made(self) -> int:
        """How many receive buffers were made so far; those in use are taken again later."""
        return self._exchange.buffers_made

    def run(
        self,
        program: RankProgram,
        batches: Batches,
        step: int,
        finish: Finish | None,
        update: Callable[[int], None] | None = None,
        around: Mapping[Instruction, Callable[[], AbstractContextManager[None]]] | None = None,
    ) -> list[Measurement]:
        """Walk one program and return what was measured, action by action.

        With gradients enabled, backwards add to the parameters' gradients.

        Args:
            program: this rank's (`rank_program`).
            batches: the step's data.
            step: for the random layers' seeds.
            finish: on a rank of the last stage.
            update: what to do after each window of a program without flush, called with its number.
            around: what some actions run in.

        Raises:
            PeerLostError: another rank died or is stuck.
        """
        measurements = []
        around = {} if around is None else around
        whereabouts = self.whereabouts
        for instruction in program.instructions:
            whereabouts.instruction = instruction
            if isinstance(instruction, Send):
                message = instruction.message
                size = batches.size_of(message.microbatch)
                self._exchange.send(message, self._outgoing.pop(message), size)
            elif isinstance(instruction, Receive):
                message = instruction.message
                self._exchange.post(message, batches.size_of(message.microbatch))
            elif isinstance(instruction, Update):
                assert update is not None
                update(instruction.window)
            else:
                context = around.get(instruction, nullcontext)
                with self._named(instruction), context():
                    start_s, device_s = self._compute(program, instruction, batches, step, finish)
                end_s = time.perf_counter()
                measurements.append(Measurement(instruction, start_s, end_s, device_s))
        whereabouts.instruction = None
        self._exchange.drain()
        return measurements

    def _named(self, action: Action) -> AbstractContextManager[Any]:
        return record_function(str(action)) if self.names_actions else nullcontext()

    def _compute(
        self,
        program: RankProgram,
        action: Action,
        batches: Batches,
        step: int,
        finish: Finish | None,
    ) -> tuple[float, float]:
        """Run one action; return when its computation started and what the device spent."""
        stage, unit = self.stages[action.stage], action.unit
        around = program.around[action]
        if around.next_forward is not None:
            self._prepare(batches, around.next_forward, program.last_stage)
        arrived = {message.edge: self._take(message) for message in around.arriving}
        if action.kind == "F":
            received = {edge.source: payload for edge, payload in arrived.items()}
            inputs = self._piece_of(batches.inputs_of(unit.microbatch, stage.input_names), unit)
            bound = None
            if action.stage == program.last_stage and finish is not None:
                target = self._piece_of(batches.target_of(unit.microbatch), unit)
                bound = partial(finish, target=target, unit=unit)
            self._seeds.begin(step, unit)
            start_s, cpu_s = time.perf_counter(), time.thread_time()
            size = batches.size_of(unit.microbatch)
            outgoing = stage.forward(unit, UnitInputs(size, inputs, received, bound))
        else:
            gradients = {edge.target: payload.tensors for edge, payload in arrived.items()}
            self._seeds.begin(step, unit)  # A stage may run forward again.
            start_s, cpu_s = time.perf_counter(), time.thread_time()
            found: dict[int, list[torch.Tensor]] = {}
            if action.kind == "B":
                found = stage.backward(unit, gradients)
            elif action.kind == "I":
                found = stage.backward_of_inputs(unit, gradients)
            else:
                stage.backward_of_weights(unit)
            outgoing = {source: Payload(g, [True] * len(g)) for source, g in found.items()}
        device_s = self.emulate(start_s, cpu_s)
        for message in around.leaving:
            payload = outgoing[message.edge.target if message.forward else message.edge.source]
            if message.sender == message.receiver:
                self._local[message] = payload.detached()
            else:
                self._outgoing[message] = payload
        return start_s, device_s

    def _prepare(self, batches: Batches, forward: Action, last_stage: int) -> None:
        """Load the data of a forward that is to come."""
        names = self.stages[forward.stage].input_names
        batches.prepare(forward.microbatch, names, with_target=forward.stage == last_stage)

    def _piece_of(self, value: Any, unit: Unit) -> Any:
        """Return what a unit gets of a micro-batch's data."""
        if unit.slice is None:
            return value
        assert self._slicing is not None
        return self._slicing.cut(value, unit.slice)

    def _take(self, message: Message) -> Payload:
        """Return a message from another rank or from another stage of this one."""
        if message.sender == message.receiver:
            return self._local.pop(message)
        return self._exchange.receive(message)

    def emulate(self, start_s: float, cpu_s: float) -> float:
        """Wait for the device, then sleep as much longer as the emulated device would have computed.

        Return what the emulated device spent, in seconds.

        Args:
            start_s: time.perf_counter at the start of the computation.
            cpu_s: time.thread_time then.
        """
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            spent_s = time.perf_counter() - start_s
        else:
            spent_s = time.thread_time() - cpu_s
        if self._slowdown > 1:
            time.sleep(spent_s * (self._slowdown - 1))
        return spent_s * self._slowdown


def rank_program(
    pipeline: Pipeline, schedule: Schedule, rank: int, *, forward_only: bool = False
) -> RankProgram:
    """Return what a rank executes: its program of a schedule, receives posted early.

    Raises:
        InputError: the rows contradict one another (`stagewright.program.check`).
    """
    program = compile_programs(pipeline, schedule, forward_only=forward_only)[rank]
    around: dict[Action, Around] = {}
    next_forward: Action | None = None
    for action in reversed([item for item in program if isinstance(item, Action)]):
        next_forward = action if action.kind == "F" else next_forward
        arriving = tuple(messages_to(pipeline, action))
        waits = any(message.sender != rank for message in arriving)
        leaving = tuple(messages_from(pipeline, action))
        around[action] = Around(arriving, leaving, next_forward if waits else None)
    instructions = tuple(_receives_early(program, around))
    return RankProgram(instructions, around, len(pipeline.stages) - 1)


def _receives_early(
    program: Sequence[Instruction], around: Mapping[Action, Around]
) -> list[Instruction]:
    """Return a program whose receives stand at least ACTIONS_AHEAD computations before their use.

    To be ready for a message blocks nothing, so this cannot deadlock; but a message that finds its receiver
    ready travels while both ends compute. What a computation made is sent first: others wait for it. The
    order of each channel's receives stays.
    """
    computations = [item for item in program if not isinstance(item, Send | Receive)]
    needed_at = {
        message: place
        for place, item in enumerate(computations)
        if isinstance(item, Action)
        for message in around[item].arriving
    }
    steps: list[list[Instruction]] = [[]]
    """A computation and what is sent after it; nothing in the first."""
    receives: list[tuple[int, Receive]] = []
    """With the step after which each may stand at the latest."""
    for item in program:
        if isinstance(item, Receive):
            latest = min(needed_at[item.message] - ACTIONS_AHEAD, len(steps) - 1)
            receives.append((max(0, latest), item))
            continue
        if not isinstance(item, Send):
            steps.append([])
        steps[-1].append(item)
    next_of: dict[tuple[int, bool], int] = {}
    """By channel: after which step the next receive stands."""
    ready: list[list[Instruction]] = [[] for _ in steps]
    for latest, item in reversed(receives):
        channel = (item.message.sender, item.message.forward)
        next_of[channel] = min(latest, next_of.get(channel, latest))
        ready[next_of[channel]].insert(0, item)
    return [item for pair in zip(steps, ready, strict=True) for part in pair for item in part]
