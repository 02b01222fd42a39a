"""The simulated run whose trace is a schedule: every rank does what its rules say, as soon as it can."""

import heapq
import math
from collections.abc import Mapping

from stagewright.flushless import Rounds
from stagewright.schedule import Action, Kind, Pipeline, Progress, Schedule


class Queue:
    """What one rank has left to do for one of its stages, in the order of the micro-batches."""

    def __init__(self, stage: int, rank: int, allowed: int, most: int, *, is_split: bool) -> None:
        self.stage = stage
        self.rank = rank
        self.allowed = allowed
        self.most = most
        self.is_split = is_split
        """Whether its backward is in two parts."""
        self.forwards: list[int] = []
        """The units dealt to it, by their places in Pipeline.units, in the order of their forwards."""
        self.backwards: list[int] = []
        """The same in the order of their backwards: the slices of a micro-batch reversed."""
        self.started: dict[Kind, int] = {"F": 0, "B": 0, "I": 0, "W": 0}

    def may_forward(self) -> bool:
        """Return whether the rank may hold one unit more.

        On the way are units that have gone forward and not back to the stage before. Where the backward is
        split, units whose weight gradients wait are held too; every stage may hold as many in all as the
        first one, which must anyway (ZB-H1).
        """
        started = self.started
        if started["F"] - started["B"] - started["I"] >= self.allowed:
            return False
        return not self.is_split or self.held() < self.most

    def held(self) -> int:
        """Return how many units are between the start of their forward and of their last backward part."""
        return self.started["F"] - self.started["B"] - self.started["W"]

    def next_unit(self, kind: Kind) -> int | None:
        """Return the unit of the next action of a kind; None if all have started."""
        units = self.forwards if kind == "F" else self.backwards
        index = self.started[kind]
        return units[index] if index < len(units) else None


class RankState:
    """What one rank has left to do."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.queues: list[Queue] = []
        """Of its stages, the last stage first."""
        self.row: list[Action] = []
        self.busy = False

    def forwards_left(self) -> bool:
        return any(queue.next_unit("F") is not None for queue in self.queues)


class Run:
    """One simulated run; time is in units that make every duration an integer."""

    def __init__(
        self,
        pipeline: Pipeline,
        allowed: list[dict[int, int]],
        most: list[dict[int, int]] | None = None,
        *,
        forwards_first: bool = False,
    ) -> None:
        """Prepare a run.

        Args:
            allowed: for each stage and rank, how many units may be between forward and the backward that
                other stages wait for.
            most: if given, backwards are in two parts, and so many units may wait for the second.
            forwards_first: whether a rank starts its backwards when all its forwards are done.
        """
        self.pipeline = pipeline
        self.forwards_first = forwards_first
        self.forward_time = _balanced_forward_times(pipeline)
        self.progress = Progress(pipeline)
        self.rounds = Rounds(pipeline) if pipeline.updates else None
        self.ranks: dict[int, RankState] = {rank: RankState(rank) for rank in pipeline.ranks}
        for stage in reversed(range(len(pipeline.stages))):
            goes_back = any(edge.carries_gradient for edge in pipeline.sources[stage])
            queues = {
                worker.rank: Queue(
                    stage,
                    worker.rank,
                    allowed[stage][worker.rank],
                    (most or allowed)[stage][worker.rank],
                    is_split=most is not None and goes_back,
                )
                for worker in pipeline.stages[stage]
            }
            for microbatch, rank in enumerate(pipeline.routes[stage]):
                first = microbatch * pipeline.num_slices
                pieces = range(first, first + pipeline.num_slices)
                queues[rank].forwards += pieces
                queues[rank].backwards += reversed(pieces)
            for rank, queue in queues.items():
                self.ranks[rank].queues.append(queue)

    def trace(self) -> Schedule:
        """Return what every rank did."""
        events: list[tuple[int, int, Action]] = []
        waiting = set(self.ranks)
        now = 0
        while waiting or events:
            for rank in sorted(waiting):
                action = self._start(self.ranks[rank])
                if action is not None:
                    duration = self.forward_time[action.stage][rank]
                    duration *= 2 if action.kind == "B" else 1
                    heapq.heappush(events, (now + duration, rank, action))
            waiting = set()
            if events:
                now = events[0][0]
            while events and events[0][0] == now:
                _, rank, action = heapq.heappop(events)
                self.ranks[rank].busy = False
                waiting.add(rank)
                waiting.update(self.progress.add(action))
                for update in self.rounds.add(rank, action) if self.rounds else ():
                    waiting.update(w.rank for w in self.pipeline.stages[update.stage])
            waiting = {rank for rank in waiting if not self.ranks[rank].busy}
            if not waiting and not events:
                waiting = self.unblock()
        assert not any(state.forwards_left() for state in self.ranks.values())
        assert all(q.held() == 0 for state in self.ranks.values() for q in state.queues)
        return Schedule({rank: tuple(state.row) for rank, state in self.ranks.items()})

    def _start(self, state: RankState) -> Action | None:
        """Return the action that a free rank starts now; None if nothing is ready. Later stages go first."""
        found = self.choose(state)
        if found is None:
            return None
        queue, kind = found
        unit = queue.next_unit(kind)
        assert unit is not None
        action = Action(queue.stage, kind, *self.pipeline.units[unit])
        queue.started[kind] += 1
        state.busy = True
        state.row.append(action)
        return action

    def unblock(self) -> set[int]:
        """Return the ranks that may go on when nothing runs any more: none, as the rules never block."""
        return set()

    def choose(self, state: RankState) -> tuple[Queue, Kind] | None:
        """Return what a free rank starts now; None if it waits."""
        for queue in state.queues:
            if queue.is_split and self.is_ready(queue, "I"):
                return queue, "I"
        for queue in state.queues:
            if queue.may_forward() and self.is_ready(queue, "F"):
                return queue, "F"
        if not self.forwards_first or not state.forwards_left():
            for queue in state.queues:
                if not queue.is_split and self.is_ready(queue, "B"):
                    return queue, "B"
        for queue in state.queues:
            if queue.is_split and self.is_ready(queue, "W"):
                return queue, "W"
        return None

    def is_ready(self, queue: Queue, kind: Kind) -> bool:
        """Return whether the next action of a kind can start."""
        unit = queue.next_unit(kind)
        if unit is None or not self.progress.is_ready(queue.stage, kind, unit):
            return False
        if self.rounds is None:
            return True
        action = Action(queue.stage, kind, *self.pipeline.units[unit])
        return self.rounds.may_start(queue.rank, action)


def split_by_share(pipeline: Pipeline, stage: int, units: int) -> dict[int, int]:
    """Return some units of a stage split over its replicas by share, rounded up, by rank."""
    workers = pipeline.stages[stage]
    total = sum(worker.share for worker in workers)
    return {worker.rank: math.ceil(units * worker.share / total) for worker in workers}


def _balanced_forward_times(pipeline: Pipeline) -> list[Mapping[int, int]]:
    """Return for each stage and rank an integer forward time that gives all stages equal throughput."""
    scale = math.lcm(*(worker.share for workers in pipeline.stages for worker in workers))
    shares = [sum(worker.share for worker in workers) for workers in pipeline.stages]
    return [
        {w.rank: scale * total // w.share for w in workers}
        for workers, total in zip(pipeline.stages, shares, strict=True)
    ]
