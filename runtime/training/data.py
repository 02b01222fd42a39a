"""The data of a training: the micro-batches of its steps and of the evaluations between them, on one rank."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import torch.distributed as dist

from stagewright.runtime.execution.randomness import seed_of
from stagewright.runtime.execution.rank_program import RankProgram
from stagewright.runtime.ranks.faults import waiting_for
from stagewright.runtime.session import Session
from stagewright.schedule import Action

from .batches import DataOrder, MicrobatchData, in_order
from .samples import Read, Request, SamplesAhead, read_samples


class TrainingData:
    """A task's datasets as one session trains and evaluates on them."""

    def __init__(self, session: Session) -> None:
        """Raises InputError if the dataset has less than one step's samples."""
        self._session = session
        self._datasets: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}
        self._read: Read = self._read_here
        inputs = {model_input.layer for model_input in session.plan.inputs}
        self._loading = {
            index
            for index, stage in session.executor.stages.items()
            if index == len(session.plan.stages) - 1 or not inputs.isdisjoint(stage.input_names)
        }
        """Of this rank's stages, those that take inputs of the model, or targets."""
        self._loads: tuple[RankProgram, list[int]] | None = None
        """Of the last program that was asked for."""
        self._order = self._new_order()
        self.steps_per_epoch = self._order.steps_per_epoch

    def of_step(self, step: int) -> MicrobatchData:
        """Return the micro-batches of a step of the training."""
        per_step = self._session.microbatches_per_step
        return self._batches([self._order.request(step, m) for m in range(per_step)])

    def of_evaluation(self) -> MicrobatchData | None:
        """Return the micro-batches of the held-out split; None where the task has no such thing."""
        requests = self._test_requests()
        return self._batches(requests) if requests else None

    @contextmanager
    def reading_ahead(
        self, num_workers: int, runs: Iterable[range], is_evaluated: Callable[[int], bool]
    ) -> Iterator[None]:
        """Let processes of their own read what this rank is going to ask for inside; none with 0 workers.

        All ranks begin when all have their first samples: the processes take long to start.

        Args:
            num_workers: how many.
            runs: the steps of the training, in runs between which the pipeline is empty.
            is_evaluated: whether an evaluation follows a step.
        """
        if not num_workers:
            yield
            return
        session = self._session
        with ExitStack() as stack:
            if self._loading:
                requests = self._requests(runs, is_evaluated)
                ahead = SamplesAhead(session.task.name, requests, num_workers)
                stack.enter_context(closing(ahead))
                self._read = ahead.read
            self._datasets.clear()
            if session.world.start is not None:
                with waiting_for("all ranks to have their first samples"):
                    dist.barrier(group=session.world.start)
            yield
        self._read = self._read_here

    def _requests(
        self, runs: Iterable[range], is_evaluated: Callable[[int], bool]
    ) -> Iterator[Request]:
        """Yield what this rank asks for, in the order in which it does."""
        session = self._session
        order = self._new_order()  # One ahead of the other in epochs; each keeps one epoch.
        for steps in runs:
            for microbatch in self._loads_of(session.program_of(steps)):
                step, own = divmod(microbatch, session.microbatches_per_step)
                yield order.request(steps.start + step, own)
            if is_evaluated(steps[-1]):
                requests = self._test_requests()
                program = session.evaluation_program(len(requests)) if requests else None
                for microbatch in self._loads_of(program) if program else ():
                    yield requests[microbatch]

    def _loads_of(self, program: RankProgram) -> list[int]:
        """Return the micro-batches that a program loads, in order; asked for twice in a row, one is kept."""
        if self._loads is not None and self._loads[0] is program:
            return self._loads[1]
        loads: list[int] = []
        forwards = (i for i in program.instructions if isinstance(i, Action) and i.kind == "F")
        for action in forwards:
            if action.stage in self._loading and loads[-1:] != [action.microbatch]:
                loads.append(action.microbatch)
        self._loads = program, loads
        return loads

    def _test_requests(self) -> list[Request]:
        seed = self._session.settings.seed
        microbatches = in_order(self._size_of("test"), self._session.plan.microbatch_size)
        return [
            Request("test", indices, seed_of(seed, "test", "sample", microbatch))
            for microbatch, indices in enumerate(microbatches)
        ]

    def _batches(self, requests: list[Request]) -> MicrobatchData:
        session = self._session
        return MicrobatchData(
            self._read,
            requests,
            session.plan.inputs,
            session.dtype,
            session.world.device,
            together=self._read == self._read_here,
        )

    def _new_order(self) -> DataOrder:
        session = self._session
        size, seed = session.plan.microbatch_size, session.settings.seed
        return DataOrder(self._size_of("train"), size, session.microbatches_per_step, seed)

    def _size_of(self, split: str) -> int:
        if split not in self._sizes:
            dataset = self._dataset(split)
            self._sizes[split] = 0 if dataset is None else len(dataset)
        return self._sizes[split]

    def _dataset(self, split: str) -> Any:
        if split not in self._datasets:
            self._datasets[split] = self._session.task.call("dataset", split)
        return self._datasets[split]

    def _read_here(self, request: Request) -> tuple[Any, Any]:
        return read_samples(self._dataset(request.split), request)
