"""A watch: gathers what the steps gave and hands it to rank 0's writers."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from stagewright.runtime.ranks.faults import waiting_for
from stagewright.runtime.ranks.world import World

from .metrics import EpochMetrics, OwnStep, StepMetrics, gather_steps
from .step_trace import StepRange, StepTrace
from .writers import JsonLines, ProgressBar, ProgressLines, TensorBoard, Writer

WATCHED_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """What to show of a run; rank 0's count, but for the traces, which every rank writes."""

    metrics: Path | None = None
    """A file of JSON lines."""
    tensorboard: Path | None = None
    lines: bool = False
    """Whether to print lines for a log."""
    every: int = WATCHED_EVERY
    """Steps between two gatherings, where anything is written."""
    traced: StepRange | None = None
    trace_folder: Path | None = None


class Watch:
    """One rank's part; every rank makes one at the same time."""

    def __init__(
        self,
        world: World,
        options: WatchOptions,
        *,
        num_steps: int,
        first_step: int,
        progress: bool,
    ) -> None:
        """progress: whether to show a bar on this rank (which must be rank 0).

        Raises:
            InputError: a file cannot be written.
            PeerLostError: another rank died or is stuck.
        """
        self._world = world
        self._own: list[OwnStep] = []
        self._writers: list[Writer] = []
        self._bar: ProgressBar | None = None
        if world.rank == 0:
            if progress:
                self._bar = ProgressBar(num_steps, first_step)
                self._writers.append(self._bar)
            if options.lines:
                self._writers.append(ProgressLines(num_steps, sys.stderr))
            if options.metrics is not None:
                self._writers.append(JsonLines(options.metrics, first_step))
            if options.tensorboard is not None:
                self._writers.append(TensorBoard(options.tensorboard, first_step))
        self._every = _agree(world, options.every if self._writers else 0)
        self.trace = StepTrace(options.traced, options.trace_folder, world)

    def add(self, own: OwnStep) -> list[float]:
        """Take a step; return the losses of all steps that were gathered with it, mostly none."""
        self._own.append(own)
        if self._bar is not None:
            self._bar.bar.update()
        if self._every and len(self._own) >= self._every:
            return self.gather()
        return []

    def gather(self) -> list[float]:
        """Return the mean losses of the steps that were not gathered yet, and write them."""
        steps = gather_steps(self._world, self._own)
        self._own = []
        for step in steps:
            self._write(step)
        for writer in self._writers:
            writer.flush()
        return [step.loss for step in steps]

    def end_epoch(self, metrics: EpochMetrics) -> None:
        """Write an epoch."""
        self._write(metrics)
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """Finish all files."""
        self.trace.close()
        for writer in self._writers:
            writer.close()

    def _write(self, event: StepMetrics | EpochMetrics) -> None:
        for writer in self._writers:
            writer.write(event)


def _agree(world: World, every: int) -> int:
    """Return rank 0's number on every rank: only rank 0 knows whether anybody looks."""
    numbers: list[Any] = [every]
    if world.start is not None:
        with waiting_for("rank 0's options"):
            dist.broadcast_object_list(numbers, 0, group=world.start)
    return int(numbers[0])
