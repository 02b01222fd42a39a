"""The executor: one rank walks its program of computations, sends and receives."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch.profiler import record_function

from stagewright.flushless import Update
from stagewright.program import Instruction, Message, Receive, Send
from stagewright.runtime.messages.exchange import Exchange
from stagewright.runtime.messages.slicing import Slicing
from stagewright.runtime.messages.values import Payload
from stagewright.runtime.ranks.whereabouts import Whereabouts
from stagewright.schedule import Action, Unit

from .randomness import LayerSeeds
from .rank_program import Around, RankProgram
from .stage import UnitInputs, Values


class Batches(Protocol):
    """Where a rank gets the data of a step's micro-batches from."""

    def size_of(self, microbatch: int) -> int:
        """Return the number of samples in a micro-batch."""

    def inputs_of(self, microbatch: int, layers: Sequence[str]) -> Values:
        """Return the model's inputs of a micro-batch that some layers name."""

    def target_of(self, microbatch: int) -> Any:
        """Return the targets of a micro-batch."""

    def prepare(
        self, microbatches: Sequence[int], layers: Sequence[str], *, with_target: bool
    ) -> None:
        """Load what `inputs_of` and `target_of` will be asked for first, maybe also what comes after it."""
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


class Measurement(NamedTuple):
    """When one action ran on this rank, in seconds of time.perf_counter."""

    action: Action
    start_s: float
    end_s: float
    device_s: float
    """What the device itself spent, times the emulated slowdown: without waits for a shared processor."""


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
                wanted = around.get(instruction) if around else None
                if wanted is None and not self.names_actions:
                    start_s, device_s = self._compute(program, instruction, batches, step, finish)
                else:
                    with self._named(instruction), (wanted or nullcontext)():
                        start_s, device_s = self._compute(
                            program, instruction, batches, step, finish
                        )
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
        if around.coming is not None:
            names = self.stages[around.coming.stage].input_names
            with_target = around.coming.stage == program.last_stage
            batches.prepare(around.coming.microbatches, names, with_target=with_target)
        self._seeds.begin(step, unit)  # Of a backward too: a stage may run forward again.
        if action.kind == "F":
            # All that can be done is done before it waits: from then on others wait for this rank.
            inputs = self._piece_of(batches.inputs_of(unit.microbatch, stage.input_names), unit)
            bound = None
            if action.stage == program.last_stage and finish is not None:
                target = self._piece_of(batches.target_of(unit.microbatch), unit)
                bound = partial(finish, target=target, unit=unit)
            size = batches.size_of(unit.microbatch)
            received = {
                message.edge.source: self._take(message, around) for message in around.arriving
            }
            start_s, cpu_s = time.perf_counter(), time.thread_time()
            outgoing = stage.forward(unit, UnitInputs(size, inputs, received, bound))
        else:
            gradients = {
                message.edge.target: self._take(message, around).tensors
                for message in around.arriving
            }
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

    def _piece_of(self, value: Any, unit: Unit) -> Any:
        """Return what a unit gets of a micro-batch's data."""
        if unit.slice is None:
            return value
        assert self._slicing is not None
        return self._slicing.cut(value, unit.slice)

    def _take(self, message: Message, around: Around) -> Payload:
        """Return a message from another rank or from another stage of this one."""
        if message.sender == message.receiver:
            return self._local.pop(message)
        return self._exchange.receive(message, around.confirmed.get(message, ()))

    def emulate(self, start_s: float, cpu_s: float) -> float:
        """Wait for the device, then sleep as much longer as the emulated device would have computed.

        Return what the emulated device spent, in seconds.

        Args:
            start_s: time.perf_counter at the start of the computation.
            cpu_s: time.thread_time then.
        """
        if self._device.type == "cuda":
            # Not the whole device: there, receives that are posted early wait for other ranks.
            torch.cuda.current_stream(self._device).synchronize()
            spent_s = time.perf_counter() - start_s
        else:
            spent_s = time.thread_time() - cpu_s
        if self._slowdown > 1:
            time.sleep(spent_s * (self._slowdown - 1))
        return spent_s * self._slowdown
