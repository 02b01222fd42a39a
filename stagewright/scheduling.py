"""Makes schedules: pure functions of a pipeline, for any replica counts, shares and numbers of micro-batches.

A schedule is the trace of one simulated run in which every stage takes as long for a micro-batch as every
other (a balanced plan), a backward twice as long as a forward, and messages take no time. As the rows of all
ranks come from one run, they cannot contradict one another.

Sources: Huang et al., "GPipe", NeurIPS 2019; Narayanan et al., "PipeDream", SOSP 2019, and
"Efficient Large-Scale Language Model Training on GPU Clusters", SC 2021 (1F1B with flush).
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Mapping

from stagewright.document import InputError
from stagewright.schedule import Action, Pipeline, Schedule

SCHEDULES = ("gpipe", "1f1b")
"""Of training steps."""
FORWARD_ONLY = "forward"
"""The schedule of inference: every forward, no backward."""


def make_schedule(name: str, pipeline: Pipeline) -> Schedule:
    """Return the rows of a schedule with flush.

    gpipe: every rank runs all its forwards, then all its backwards.
    1f1b: a rank runs a forward while it holds fewer units than the replicas behind it need to stay busy
    (`units_allowed`), else a backward. (Two backwards in a row, where replicas finish together, would starve
    one of them.)
    forward: every forward, no backward.

    Raises:
        InputError: there is no schedule of that name.
    """
    if name == "gpipe":
        everything = {
            worker.rank: pipeline.num_microbatches for w in pipeline.stages for worker in w
        }
        return _run(pipeline, [everything] * len(pipeline.stages), forwards_first=True)
    if name == FORWARD_ONLY:
        return forward_schedule(pipeline)
    if name == "1f1b":
        return _run(pipeline, units_allowed(pipeline), forwards_first=False)
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
    allowed = []
    behind = 0
    for workers in reversed(pipeline.stages):
        behind += len(workers)
        total = sum(worker.share for worker in workers)
        allowed.append({w.rank: math.ceil(behind * w.share / total) for w in workers})
    return allowed[::-1]


class _Rank:
    """What one rank has left to do, per stage, in the order of the micro-batches."""

    def __init__(self) -> None:
        self.forwards: dict[int, list[int]] = defaultdict(list)
        self.num_forwards: dict[int, int] = defaultdict(int)
        self.num_backwards: dict[int, int] = defaultdict(int)
        self.row: list[Action] = []
        self.busy = False

    def forwards_left(self) -> bool:
        return any(self.num_forwards[stage] < len(units) for stage, units in self.forwards.items())


def _run(pipeline: Pipeline, allowed: list[dict[int, int]], *, forwards_first: bool) -> Schedule:
    """Simulate one run and return its trace; time is in units that make every duration an integer."""
    ranks: dict[int, _Rank] = {rank: _Rank() for rank in pipeline.ranks}
    for stage, route in enumerate(pipeline.routes):
        for microbatch, rank in enumerate(route):
            ranks[rank].forwards[stage].append(microbatch)
    forward_time = _balanced_forward_times(pipeline)
    done: set[Action] = set()
    events: list[tuple[int, int, Action]] = []
    waiting = set(ranks)
    now = 0
    while waiting or events:
        for rank in sorted(waiting):
            action = _choose(pipeline, ranks[rank], rank, allowed, done, forwards_first)
            if action is not None:
                ranks[rank].busy = True
                ranks[rank].row.append(action)
                duration = forward_time[action.stage][rank] * (1 if action.kind == "F" else 2)
                heapq.heappush(events, (now + duration, rank, action))
        waiting = set()
        if events:
            now = events[0][0]
        while events and events[0][0] == now:
            _, rank, action = heapq.heappop(events)
            done.add(action)
            ranks[rank].busy = False
            waiting |= {rank, *_ranks_served(pipeline, action)}
        waiting = {rank for rank in waiting if not ranks[rank].busy}
    schedule = Schedule({rank: tuple(state.row) for rank, state in ranks.items()})
    assert (
        sum(map(len, schedule.rows.values()))
        == 2 * len(pipeline.stages) * pipeline.num_microbatches
    )
    return schedule


def _choose(
    pipeline: Pipeline,
    state: _Rank,
    rank: int,
    allowed: list[dict[int, int]],
    done: set[Action],
    forwards_first: bool,
) -> Action | None:
    """Return the action that a free rank starts now; None if nothing is ready. Later stages go first."""
    for stage in sorted(state.forwards, reverse=True):
        held = state.num_forwards[stage] - state.num_backwards[stage]
        if state.num_forwards[stage] < len(state.forwards[stage]) and held < allowed[stage][rank]:
            action = Action(stage, "F", state.forwards[stage][state.num_forwards[stage]])
            if is_ready(pipeline, action, done):
                state.num_forwards[stage] += 1
                return action
    backwards_may_start = not (forwards_first and state.forwards_left())
    if backwards_may_start:
        for stage in sorted(state.forwards, reverse=True):
            if state.num_backwards[stage] < state.num_forwards[stage]:
                action = Action(stage, "B", state.forwards[stage][state.num_backwards[stage]])
                if is_ready(pipeline, action, done):
                    state.num_backwards[stage] += 1
                    return action
    return None


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
