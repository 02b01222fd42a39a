"""Traces of some steps by torch.profiler, one file per rank, for Perfetto or chrome://tracing."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from stagewright.document import InputError, demand_writable
from stagewright.runtime.execution.executor import Executor
from stagewright.runtime.ranks.world import World


@dataclass(frozen=True)
class StepRange:
    """Steps, counted from 1 as in the metrics, both ends included."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> "StepRange":
        """Return the range in "3:5".

        Raises:
            InputError: it is none.
        """
        first, colon, last = text.partition(":")
        if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            raise InputError(
                f"--profile-steps is {text!r}, expected FIRST:LAST, two steps counted from 1: 3:5"
            )
        return cls(int(first), int(last))


class StepTrace:
    """One rank's trace."""

    def __init__(self, steps: StepRange | None, folder: Path | None, world: World) -> None:
        """With steps there must be a folder.

        Raises:
            InputError: the folder cannot be written.
        """
        self._steps = steps
        self._world = world
        self._profiler: profile | None = None
        self._path: Path | None = None
        self._is_written = False
        if steps is not None:
            assert folder is not None
            self._path = folder / f"rank{world.rank}.trace.json"
            demand_writable(self._path)

    @contextmanager
    def around(self, steps: range, executor: Executor) -> Iterator[None]:
        """Trace some steps that run on from one to the next, counted from 0, if any is to be traced."""
        if self._steps is not None and self._steps.first - 1 in steps:
            self._start(executor)
        yield
        if self._steps is not None and self._steps.last - 1 in steps and self._profiler is not None:
            self._finish()
            executor.names_actions = False

    def close(self) -> None:
        """Write what there is if the training ended before the last step; say so if there is nothing."""
        if self._profiler is not None:
            self._finish()
        elif self._steps is not None and not self._is_written and self._world.rank == 0:
            print(
                f"stagewright train: no trace was written: step {self._steps.first} of --profile-steps "
                "was not run",
                file=sys.stderr,
            )

    def _start(self, executor: Executor) -> None:
        activities = [ProfilerActivity.CPU]
        if self._world.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        executor.names_actions = True
        self._profiler = profile(activities=activities, acc_events=True)
        self._profiler.start()

    def _finish(self) -> None:
        assert self._profiler is not None
        assert self._path is not None
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)
        self._profiler.stop()
        unfinished = self._path.with_name(f".{self._path.name}")
        self._profiler.export_chrome_trace(str(unfinished))
        os.replace(unfinished, self._path)
        self._profiler = None
        self._is_written = True
