"""Makes schedules: pure functions of a pipeline, for any replica counts, shares and numbers of micro-batches.

A schedule is the trace of one simulated run in which every stage takes as long for a micro-batch as every
other (a balanced plan), a backward twice as long as a forward, and messages take no time. As the rows of all
ranks come from one run, they cannot contradict one another.

Sources: Huang et al., "GPipe", NeurIPS 2019; Narayanan et al., "PipeDream", SOSP 2019, and
"Efficient Large-Scale Language Model Training on GPU Clusters", SC 2021 (1F1B with flush); Qi et al., "Zero
Bubble Pipeline Parallelism", ICLR 2024 (ZB-H1).
"""

import heapq
import math
from collections.abc import Mapping

from stagewright.document import InputError
from stagewright.schedule import Action, Kind, Pipeline, Progress, Schedule

SCHEDULES = ("gpipe", "1f1b", "zero-bubble")
"""Of training steps."""
PLANNED_SCHEDULES = ("gpipe", "1f1b")
"""Those whose memory the planner's cost model knows; the others are chosen when a plan is run."""
FORWARD_ONLY = "forward"
"""The schedule of inference: every forward, no backward."""


def make_schedule(name: str, pipeline: Pipeline) -> Schedule:
    """Return the rows of a schedule with flush.

    gpipe: every rank runs all its forwards, then all its backwards.
    1f1b: a rank runs a forward while it holds fewer units than the replicas behind it need to stay busy
    (`units_allowed`), else a backward. (Two backwards in a row, where replicas finish together, would starve
    one of them.)
    zero-bubble: 1f1b with the backward in two parts; the gradients of the inputs (I) as soon as they can be,
    those of the weights (W) where the rank would idle. A stage that sends no gradient back has no I.
    forward: every forward, no backward.

    Raises:
        InputError: there is no schedule of that name.
    """
    if name == "gpipe":
        everything = {
            worker.rank: pipeline.num_microbatches for w in pipeline.stages for worker in w
        }
        return _Run(pipeline, [everything] * len(pipeline.stages), forwards_first=True).trace()
    if name == FORWARD_ONLY:
        return forward_schedule(pipeline)
    if name in ("1f1b", "zero-bubble"):
        allowed = units_allowed(pipeline)
        return _Run(pipeline, allowed, splits_backward=name == "zero-bubble").trace()
    raise InputError(f"schedule is {name!r}, expected one of {', '.join(SCHEDULES)}")


def forward_schedule(pipeline: Pipeline) -> Schedule:
    """Return the rows of an evaluation: every forward, no backward."""
    rows: dict[int, list[Action]] = {rank: [] for rank in pipeline.ranks}
    for microbatch in range(pipeline.num_microbatches):
        for stage, ranks in enumerate(pipeline.routes):
            rows[ranks[microbatch]].append(Action(stage, "F", microbatch))
    return Schedule({rank: tuple(row) for rank, row in rows.items()})


def units_allowed(pipeline: Pipeline) -> list[dict[int, int]]:
    """Return for each stage and rank how many units 1F1B lets it hold between forward and backward.

    A stage holds one unit for each replica from itself to the last stage; its replicas split them by share.
    Source: the number of in-flight minibatches of PipeDream, SOSP 2019, section 3.2, with unequal shares.
    """
    behind = [sum(map(len, pipeline.stages[stage:])) for stage in range(len(pipeline.stages))]
    return _split_by_share(pipeline, behind)


def units_held_at_most(pipeline: Pipeline) -> list[dict[int, int]]:
    """Return for each stage and rank how many units zero-bubble lets it hold until their weights' gradients.

    As many as 1F1B's first stage: one for each replica of all stages, split by share.
    """
    everyone = sum(map(len, pipeline.stages))
    return _split_by_share(pipeline, [everyone] * len(pipeline.stages))


def _split_by_share(pipeline: Pipeline, units: list[int]) -> list[dict[int, int]]:
    """Return each stage's units split over its replicas by share, rounded up."""
    shares = [sum(worker.share for worker in workers) for workers in pipeline.stages]
    return [
        {w.rank: math.ceil(count * w.share / total) for w in workers}
        for workers, count, total in zip(pipeline.stages, units, shares, strict=True)
    ]


class _Queue:
    """What one rank has left to do for one of its stages, in the order of the micro-batches."""

    def __init__(self, stage: int, allowed: int, most: int, *, is_split: bool) -> None:
        self.stage = stage
        self.allowed = allowed
        self.most = most
        self.is_split = is_split
        """Whether its backward is in two parts."""
        self.units: list[int] = []
        """The micro-batches dealt to it."""
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


class _Rank:
    """What one rank has left to do."""

    def __init__(self) -> None:
        self.queues: list[_Queue] = []
        """Of its stages, the last stage first."""
        self.row: list[Action] = []
        self.busy = False

    def forwards_left(self) -> bool:
        return any(queue.started["F"] < len(queue.units) for queue in self.queues)


class _Run:
    """One simulated run; time is in units that make every duration an integer."""

    def __init__(
        self,
        pipeline: Pipeline,
        allowed: list[dict[int, int]],
        *,
        forwards_first: bool = False,
        splits_backward: bool = False,
    ) -> None:
        most = units_held_at_most(pipeline) if splits_backward else allowed
        self.forwards_first = forwards_first
        self.forward_time = _balanced_forward_times(pipeline)
        self.progress = Progress(pipeline)
        self.ranks: dict[int, _Rank] = {rank: _Rank() for rank in pipeline.ranks}
        for stage in reversed(range(len(pipeline.stages))):
            is_split = splits_backward and any(e.carries_gradient for e in pipeline.sources[stage])
            queues = {
                worker.rank: _Queue(
                    stage, allowed[stage][worker.rank], most[stage][worker.rank], is_split=is_split
                )
                for worker in pipeline.stages[stage]
            }
            for microbatch, rank in enumerate(pipeline.routes[stage]):
                queues[rank].units.append(microbatch)
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
            waiting = {rank for rank in waiting if not self.ranks[rank].busy}
        assert not any(state.forwards_left() for state in self.ranks.values())
        assert all(q.held() == 0 for state in self.ranks.values() for q in state.queues)
        return Schedule({rank: tuple(state.row) for rank, state in self.ranks.items()})

    def _start(self, state: _Rank) -> Action | None:
        """Return the action that a free rank starts now; None if nothing is ready. Later stages go first."""
        found = self._choose(state)
        if found is None:
            return None
        queue, kind = found
        action = Action(queue.stage, kind, queue.units[queue.started[kind]])
        queue.started[kind] += 1
        state.busy = True
        state.row.append(action)
        return action

    def _choose(self, state: _Rank) -> tuple[_Queue, Kind] | None:
        for queue in state.queues:
            if queue.is_split and self._is_ready(queue, "I"):
                return queue, "I"
        for queue in state.queues:
            if queue.may_forward() and self._is_ready(queue, "F"):
                return queue, "F"
        if not self.forwards_first or not state.forwards_left():
            for queue in state.queues:
                if not queue.is_split and self._is_ready(queue, "B"):
                    return queue, "B"
        for queue in state.queues:
            if queue.is_split and self._is_ready(queue, "W"):
                return queue, "W"
        return None

    def _is_ready(self, queue: _Queue, kind: Kind) -> bool:
        """Return whether the next action of a kind can start."""
        index = queue.started[kind]
        if index == len(queue.units):
            return False
        return self.progress.is_ready(queue.stage, kind, queue.units[index])


def _balanced_forward_times(pipeline: Pipeline) -> list[Mapping[int, int]]:
    """Return for each stage and rank an integer forward time that gives all stages equal throughput."""
    scale = math.lcm(*(worker.share for workers in pipeline.stages for worker in workers))
    shares = [sum(worker.share for worker in workers) for workers in pipeline.stages]
    return [
        {w.rank: scale * total // w.share for w in workers}
        for workers, total in zip(pipeline.stages, shares, strict=True)
    ]
