"""Random pipelines for tests: replicas, shares, skips, several stages on a rank, slices."""

import random

from hypothesis import strategies as st

from stagewright.program import check
from stagewright.schedule import Action, Edge, Pipeline, Schedule, Worker


def random_pipeline(
    rng: random.Random, *, several_stages: bool = True, most_slices: int = 1
) -> Pipeline:
    """Return up to 6 stages of up to 4 replicas with any edges and up to 12 micro-batches.

    Args:
        several_stages: whether ranks may run several stages; then half of the pipelines deal their stages
            to few ranks, in turn or at random.
        most_slices: of a micro-batch.
    """
    count = rng.randint(1, 6)
    replicas = [rng.randint(1, 4) for _ in range(count)]
    pool = list(range(sum(replicas)))
    if several_stages and rng.random() < 0.5:
        pool = list(range(rng.randint(max(replicas), max(max(replicas), sum(replicas) - 1))))
    shuffled = rng.random() < 0.5
    stages, first = [], 0
    for size in replicas:
        if shuffled and len(pool) < sum(replicas):
            ranks = rng.sample(pool, size)
        else:
            ranks = [pool[(first + r) % len(pool)] for r in range(size)]
        first += size
        stages.append(ranks)
    names = {rank: name for name, rank in enumerate(sorted({r for s in stages for r in s}))}
    pairs = [(s, t) for s in range(count) for t in range(s + 1, count)]
    is_chain = rng.random() < 0.3
    edges = [
        Edge(s, t, carries_gradient=is_chain or rng.random() < 0.7)
        for s, t in pairs
        if t == s + 1 or rng.random() < 0.3
    ]
    if not is_chain:
        edges = [edge for edge in edges if rng.random() < 0.8]
        rng.shuffle(edges)
    return Pipeline(
        stages=tuple(
            tuple(Worker(names[rank], rng.randint(1, 4)) for rank in sorted(ranks))
            for ranks in stages
        ),
        edges=tuple(edges),
        num_microbatches=rng.randint(1, 12),
        num_slices=rng.randint(1, most_slices),
    )


@st.composite
def pipelines(draw: st.DrawFn, *, several_stages: bool = True, most_slices: int = 1) -> Pipeline:
    """The same as a strategy; a failing example shrinks to a smaller seed only."""
    rng = random.Random(draw(st.integers(0, 2**32 - 1)))
    return random_pipeline(rng, several_stages=several_stages, most_slices=most_slices)


def end_of(pipeline: Pipeline, schedule: Schedule) -> int:
    """Return when the last action ends if each starts as soon as it can; a full backward takes 2, else 1."""
    end: dict[Action, int] = {}
    free = dict.fromkeys(schedule.rows, 0)
    for action in check(pipeline, schedule):
        rank = pipeline.routes[action.stage][action.microbatch]
        needs = (need if isinstance(need, tuple) else (need,) for need in pipeline.needs(action))
        ready = max((end[n] for need in needs for n in need if n in end), default=0)
        start = max(ready, free[rank])
        free[rank] = end[action] = start + (2 if action.kind == "B" else 1)
    return max(end.values())


def units_held(schedule: Schedule, rank: int) -> int:
    """Return the most units of all its stages that a rank holds between forward and end of backward."""
    held = most = 0
    for action in schedule.rows[rank]:
        held += {"F": 1, "B": -1, "I": 0, "W": -1}[action.kind]
        most = max(most, held)
    return most
