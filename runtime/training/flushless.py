"""Training without flush: several steps as one program, in which every stage updates after each window.

A step is a window: as many micro-batches as an update sums over. The program of a run of steps starts and
ends with an empty pipeline, so an evaluation, a checkpoint or a resumed run finds every stage with the same
updates done. The data and the random numbers of a step are those of a training with flush.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from stagewright.document import InputError
from stagewright.flushless import unit_versions, without_flush
from stagewright.plan import Plan
from stagewright.program import Instruction
from stagewright.runtime.execution.executor import Batches, Executor, Finish
from stagewright.runtime.execution.rank_program import RankProgram, rank_program
from stagewright.runtime.execution.replicas import Reduction
from stagewright.runtime.execution.stage import Values
from stagewright.runtime.execution.versions import VersionedRunner
from stagewright.schedule import Pipeline
from stagewright.scheduling import make_schedule

from .step_times import StepTimes


class BatchesOfSteps:
    """The micro-batches of several steps, numbered through."""

    def __init__(self, data_of: Callable[[int], Batches], first: int, per_step: int) -> None:
        """data_of returns the data of a step; first is the step of micro-batch 0."""
        self._data_of = data_of
        self._first = first
        self._per_step = per_step
        self._current: tuple[int, Batches] | None = None
        """A rank goes forward in the order of the micro-batches, so one step's data is enough."""
        self._sizes: dict[int, list[int]] = {}
        """Messages of earlier and later steps ask for sizes only."""

    def size_of(self, microbatch: int) -> int:
        step, own = divmod(microbatch, self._per_step)
        if step not in self._sizes:
            data = self._data_of(self._first + step)
            self._sizes[step] = [data.size_of(m) for m in range(self._per_step)]
        return self._sizes[step][own]

    def inputs_of(self, microbatch: int, layers: Sequence[str]) -> Values:
        data, own = self._find(microbatch)
        return data.inputs_of(own, layers)

    def target_of(self, microbatch: int) -> Any:
        data, own = self._find(microbatch)
        return data.target_of(own)

    def prepare(
        self, microbatches: Sequence[int], layers: Sequence[str], *, with_target: bool
    ) -> None:
        data, _ = self._find(microbatches[0])
        step = microbatches[0] // self._per_step
        own = [m % self._per_step for m in microbatches if m // self._per_step == step]
        data.prepare(own, layers, with_target=with_target)

    def _find(self, microbatch: int) -> tuple[Batches, int]:
        step, own = divmod(microbatch, self._per_step)
        step += self._first
        if self._current is None or self._current[0] != step:
            self._current = (step, self._data_of(step))
        return self._current[1], own


class WindowTraining:
    """Runs several steps as one program on one rank."""

    def __init__(
        self,
        name: str,
        pipeline: Pipeline,
        rank: int,
        executor: Executor,
        runner: VersionedRunner,
        reduction: Reduction,
    ) -> None:
        """The pipeline is one step's.

        Raises:
            InputError: a rank has several stages.
        """
        self._name = name
        self._rank = rank
        self.window = pipeline.num_microbatches
        self._pipeline = without_flush(name, pipeline, self.window)
        self._executor = executor
        self.versions = runner.versions
        self._reduction = reduction
        self._programs: dict[int, tuple[RankProgram, Mapping[int, int]]] = {}
        """By number of steps: made ready once, as the steps between two drains are often as many."""

    def run(
        self,
        batches: Batches,
        steps: range,
        finish: Finish | None,
        update: Callable[[int, StepTimes], None],
    ) -> int:
        """Run some steps; return how many units went forward.

        Args:
            batches: their data, micro-batches numbered through.
            steps: which.
            finish: on a rank of the last stage, for micro-batches numbered through.
            update: applies the summed gradients of a step to the masters, in place. The times are those
                since the update before: a step's last micro-batches travel on while the next one's start.
        """
        self._executor.whereabouts.enter(f"steps {steps.start + 1} to {steps.stop}")
        program, versions = self._prepare(len(steps))
        times: list[StepTimes] = []
        self._executor.traffic.take()
        last_s = time.perf_counter()

        def close(window: int) -> None:
            nonlocal last_s
            reduce_s = time.perf_counter()
            self._reduction.sum_gradients()
            end_s = time.perf_counter()
            self.versions.advance()
            sent = self._executor.traffic.take()
            times.append(
                StepTimes(
                    actions=[],  # Filled in at the end, those of the window's micro-batches.
                    start_s=last_s,
                    step_s=end_s - last_s,
                    reduce_s=end_s - reduce_s,
                    sent=sent,
                )
            )
            update(steps[window], times[-1])
            last_s = time.perf_counter()

        self.versions.begin(versions)
        measured = self._executor.run(program, batches, steps.start, finish, close)
        self.versions.end()
        for measurement in measured:
            times[measurement.action.microbatch // self.window].actions.append(measurement)
        return len(versions)

    @contextmanager
    def standing_alone(self, program: Sequence[Instruction]) -> Iterator[None]:
        """Let a program without updates run inside, all on the weights as they are."""
        assert self._pipeline.updates is not None
        self.versions.begin(unit_versions(self._pipeline.updates, program))
        yield
        self.versions.end()

    def program_of(self, num_steps: int) -> RankProgram:
        """Return what this rank executes in so many steps."""
        return self._prepare(num_steps)[0]

    def _prepare(self, num_steps: int) -> tuple[RankProgram, Mapping[int, int]]:
        """Return this rank's program and the versions of its units."""
        if num_steps not in self._programs:
            pipeline = replace(self._pipeline, num_microbatches=num_steps * self.window)
            program = rank_program(pipeline, make_schedule(self._name, pipeline), self._rank)
            assert pipeline.updates is not None
            versions = unit_versions(pipeline.updates, program.instructions)
            self._programs[num_steps] = (program, versions)
        return self._programs[num_steps]


def refuse_shared_parameters(name: str, plan: Plan, holders: Mapping[str, Sequence[int]]) -> None:
    """Raise InputError if stages share a parameter: their updates are at different times.

    Args:
        name: of the schedule.
        plan: with one stage for each rank.
        holders: for each trained parameter the ranks that hold it.
    """
    stage_of = {r.rank: index for index, stage in enumerate(plan.stages) for r in stage.replicas}
    for parameter in sorted(holders):
        stages = sorted({stage_of[rank] for rank in holders[parameter]})
        if len(stages) > 1:
            raise InputError(
                f"schedule {name}: stages {', '.join(map(str, stages))} share the parameter {parameter!r}, "
                "but update at different times; choose a schedule with flush, or plan with --fix so that "
                "one stage has all layers that use it"
            )
