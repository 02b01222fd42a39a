"""The interleaved schedule: 1F1B for ranks that run several stages, so that the pipeline fills in less time.

Ranks go through their stages in rounds: some micro-batches pass the first stage of every rank, then the same
ones the second, and so on, before the next micro-batches start. With P ranks of V stages each, dealt in turn,
and a number of micro-batches that is a multiple of P, the rows are those of Narayanan et al., "Efficient
Large-Scale Language Model Training on GPU Clusters", SC 2021, section 2.2, in its order of time and with as
many units in flight; the bubble is 1 / V of 1F1B's. Other numbers of micro-batches, replicas, shares and
placements follow from the same rules.
"""

from collections import Counter

from stagewright.schedule import Kind, Pipeline, Schedule
from stagewright.schedule_run import Queue, RankState, Run, split_by_share


def interleaved_schedule(pipeline: Pipeline) -> Schedule:
    """Return the rows; where every rank runs one stage, they are 1F1B's."""
    return _InterleavedRun(pipeline).trace()


def rounds_of(pipeline: Pipeline) -> tuple[int, ...]:
    """Return for each micro-batch the round in which it passes the ranks' stages.

    A round has as many micro-batches as there are ranks, so that each rank ends its part for one stage when
    the first of them is ready for the next; what does not divide is spread evenly over larger rounds.
    """
    num_microbatches = pipeline.num_microbatches
    rounds = max(1, num_microbatches // len(pipeline.ranks))
    return tuple(m * rounds // num_microbatches for m in range(num_microbatches))


def units_allowed_of_all(pipeline: Pipeline) -> dict[int, int]:
    """Return for each rank how many units of all its stages it may hold.

    As many as 1F1B's for its first stage (`units_allowed`); with several stages also one for each replica
    behind its last, split by share, as the forwards of its last stage run that many turns ahead of the
    backwards; and for each stage but one what a round has more than one micro-batch per rank.
    """
    behind = [sum(map(len, pipeline.stages[stage:])) for stage in range(len(pipeline.stages))]
    parts = [split_by_share(pipeline, stage, count) for stage, count in enumerate(behind)]
    units: dict[int, int] = {}
    last: dict[int, int] = {}
    for stage, part in enumerate(parts):
        for rank in part:
            units.setdefault(rank, part[rank] + pipeline.num_slices - 1)
            last[rank] = stage
    longest = max(Counter(rounds_of(pipeline)).values())
    longer = max(0, longest - len(pipeline.ranks))
    stages = Counter(rank for part in parts for rank in part)
    for rank, stage in last.items():
        if stages[rank] > 1:
            units[rank] += parts[stage][rank] - 1 + (stages[rank] - 1) * longer
    return units


class _InterleavedRun(Run):
    def __init__(self, pipeline: Pipeline) -> None:
        everything = dict.fromkeys(pipeline.ranks, pipeline.num_units)
        super().__init__(pipeline, [everything] * len(pipeline.stages))
        self._rounds = rounds_of(pipeline)
        self._allowed = units_allowed_of_all(pipeline)

    def choose(self, state: RankState) -> tuple[Queue, Kind] | None:
        """Return the next forward while the rank may hold another unit, else the next backward."""
        if sum(queue.held() for queue in state.queues) < self._allowed[state.rank]:
            forward = self._next_forward(state)
            if forward is not None:
                return forward, "F"
        ready = [queue for queue in state.queues if self.is_ready(queue, "B")]
        if not ready:
            return None
        return min(ready, key=lambda queue: self._place(queue, "B")), "B"

    def unblock(self) -> set[int]:
        """Let the rank whose next forward is the first of all that are ready hold one unit more.

        Only ranks with stages in uneven places come to it. If nothing runs, the first forward left in the
        order of (round, stage, unit) has all its inputs and is the next of its rank. So the run always ends.
        """
        blocked = []
        for state in self.ranks.values():
            queue = self._next_forward(state)
            if queue is not None:
                blocked.append((self._place(queue, "F"), state.rank))
        if not blocked:
            return set()
        _, rank = min(blocked)
        self._allowed[rank] += 1
        return {rank}

    def _next_forward(self, state: RankState) -> Queue | None:
        """Return the queue of a rank's next forward in the order of rounds; None if it is not ready."""
        left = [queue for queue in state.queues if queue.next_unit("F") is not None]
        if not left:
            return None
        queue = min(left, key=lambda queue: self._place(queue, "F"))
        return queue if self.is_ready(queue, "F") else None

    def _place(self, queue: Queue, kind: Kind) -> tuple[int, int, int]:
        """Return where a queue's next action stands: by round, then in the order of the stages."""
        unit = queue.next_unit(kind)
        assert unit is not None
        this_round = self._rounds[unit // self.pipeline.num_slices]
        return this_round, queue.stage if kind == "F" else -queue.stage, unit
