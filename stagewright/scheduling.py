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
from collections import Counter, defaultdict
from collections.abc import Mapping

from stagewright.document import InputError
from stagewright.schedule import Action, Kind, Pipeline, Schedule

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
    return [
        {w.rank: math.ceil(count * w.share / sum(o.share for o in workers)) for w in workers}
        for workers, count in zip(pipeline.stages, units, strict=True)
    ]


class _Rank:
    """What one rank has left to do, per stage, in the order of the micro-batches."""

    def __init__(self) -> None:
        self.units: dict[int, list[int]] = defaultdict(list)
        """By stage: the micro-batches dealt to it."""
        self.started: Counter[tuple[int, str]] = Counter()
        """By stage and kind of action: how many were started."""
        self.row: list[Action] = []
        self.busy = False

    def next(self, stage: int, kind: Kind) -> Action | None:
        """Return the next action of a kind; None if all are started."""
        index = self.started[stage, kind]
        units = self.units[stage]
        return Action(stage, kind, units[index]) if index < len(units) else None

    def on_the_way(self, stage: int) -> int:
        """Return how many units have gone forward and not back to the stage before."""
        started = self.started
        return started[stage, "F"] - started[stage, "B"] - started[stage, "I"]

    def held(self, stage: int) -> int:
        """Return how many units are between the start of their forward and of their last backward part."""
        started = self.started
        return started[stage, "F"] - started[stage, "B"] - started[stage, "W"]

    def forwards_left(self) -> bool:
        return any(self.started[stage, "F"] < len(units) for stage, units in self.units.items())


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
        self.pipeline = pipeline
        self.allowed = allowed
        self.most = units_held_at_most(pipeline) if splits_backward else allowed
        self.forwards_first = forwards_first
        self.splits_backward = splits_backward
        self.forward_time = _balanced_forward_times(pipeline)
        self.done: set[Action] = set()
        self.ranks: dict[int, _Rank] = {rank: _Rank() for rank in pipeline.ranks}
        for stage, route in enumerate(pipeline.routes):
            for microbatch, rank in enumerate(route):
                self.ranks[rank].units[stage].append(microbatch)

    def trace(self) -> Schedule:
        """Return what every rank did."""
        events: list[tuple[int, int, Action]] = []
        waiting = set(self.ranks)
        now = 0
        while waiting or events:
            for rank in sorted(waiting):
                action = self._choose(rank)
                if action is not None:
                    heapq.heappush(events, (now + self._start(rank, action), rank, action))
            waiting = set()
            if events:
                now = events[0][0]
            while events and events[0][0] == now:
                _, rank, action = heapq.heappop(events)
                self.done.add(action)
                self.ranks[rank].busy = False
                waiting |= {rank, *_ranks_served(self.pipeline, action)}
            waiting = {rank for rank in waiting if not self.ranks[rank].busy}
        assert not any(state.forwards_left() for state in self.ranks.values())
        assert all(state.held(s) == 0 for state in self.ranks.values() for s in state.units)
        return Schedule({rank: tuple(state.row) for rank, state in self.ranks.items()})

    def _start(self, rank: int, action: Action) -> int:
        """Note that a rank starts an action; return its duration."""
        state = self.ranks[rank]
        state.busy = True
        state.row.append(action)
        state.started[action.stage, action.kind] += 1
        return self.forward_time[action.stage][rank] * (2 if action.kind == "B" else 1)

    def _choose(self, rank: int) -> Action | None:
        """Return the action that a free rank starts now; None if nothing is ready. Later stages go first."""
        state = self.ranks[rank]
        stages = sorted(state.units, reverse=True)
        split = [stage for stage in stages if self._is_split(stage)]
        whole = [stage for stage in stages if not self._is_split(stage)]
        if self.forwards_first and state.forwards_left():
            whole = []
        return (
            self._first_ready(state, split, "I")
            or self._first_ready(state, [s for s in stages if self._may_forward(rank, s)], "F")
            or self._first_ready(state, whole, "B")
            or self._first_ready(state, split, "W")
        )

    def _may_forward(self, rank: int, stage: int) -> bool:
        """Return whether a rank may hold one unit more.

        Where the backward is split, units whose weight gradients wait are held too; every stage may hold as
        many in all as the first one, which must anyway (ZB-H1).
        """
        state = self.ranks[rank]
        if state.on_the_way(stage) >= self.allowed[stage][rank]:
            return False
        return not self._is_split(stage) or state.held(stage) < self.most[stage][rank]

    def _first_ready(self, state: _Rank, stages: list[int], kind: Kind) -> Action | None:
        for stage in stages:
            action = state.next(stage, kind)
            if action is not None and is_ready(self.pipeline, action, self.done):
                return action
        return None

    def _is_split(self, stage: int) -> bool:
        edges = self.pipeline.sources[stage]
        return self.splits_backward and any(edge.carries_gradient for edge in edges)


def is_ready(pipeline: Pipeline, action: Action, done: set[Action]) -> bool:
    """Return whether all that an action needs is done."""
    return all(
        any(choice in done for choice in need) if isinstance(need, tuple) else need in done
        for need in pipeline.needs(action)
    )


def _ranks_served(pipeline: Pipeline, action: Action) -> set[int]:
    """Return the ranks that may have waited for an action."""
    edges = pipeline.targets[action.stage] if action.kind == "F" else pipeline.sources[action.stage]
    stages = (edge.target if action.kind == "F" else edge.source for edge in edges)
    return {pipeline.routes[stage][action.microbatch] for stage in stages}


def _balanced_forward_times(pipeline: Pipeline) -> list[Mapping[int, int]]:
    """Return for each stage and rank an integer forward time that gives all stages equal throughput."""
    scale = math.lcm(*(worker.share for workers in pipeline.stages for worker in workers))
    return [
        {w.rank: scale * sum(other.share for other in workers) // w.share for w in workers}
        for workers in pipeline.stages
    ]
