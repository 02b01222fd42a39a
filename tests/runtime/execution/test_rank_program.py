"""What a rank executes: its compiled program, receives posted early, what is computed sent at once."""

import itertools
import random
from collections.abc import Iterable

import pytest

from stagewright.program import Instruction, Message, Receive, Send, compile_programs
from stagewright.runtime.execution.rank_program import ACTIONS_AHEAD, rank_program
from stagewright.schedule import Action, Edge, Pipeline, Worker
from stagewright.scheduling import SCHEDULES, make_schedule


def random_pipeline(rng: random.Random) -> Pipeline:
    """Return a pipeline with skips, replicas, and maybe several stages on a rank."""
    count, num_ranks = rng.randint(2, 5), rng.randint(2, 6)
    stages = tuple(
        tuple(
            Worker(rank, rng.randint(1, 2))
            for rank in rng.sample(range(num_ranks), rng.randint(1, 2))
        )
        for _ in range(count)
    )
    pairs = itertools.combinations(range(count), 2)
    edges = (Edge(s, t, rng.random() < 0.8) for s, t in pairs if t == s + 1 or rng.random() < 0.5)
    return Pipeline(stages, tuple(edges), rng.randint(1, 8))


def receives(items: Iterable[Instruction], sender: int, *, forward: bool) -> list[Message]:
    """Return the messages of one channel in the order in which a program is ready for them."""
    found = [item.message for item in items if isinstance(item, Receive)]
    return [m for m in found if (m.sender, m.forward) == (sender, forward)]


@pytest.mark.parametrize("seed", range(100))
def test_receives_are_posted_early_and_in_order_and_delay_no_send(seed: int) -> None:
    rng = random.Random(seed)
    pipeline = random_pipeline(rng)
    schedule = make_schedule(rng.choice(SCHEDULES), pipeline)
    for rank, compiled in compile_programs(pipeline, schedule).items():
        program = rank_program(pipeline, schedule, rank)
        items = program.instructions
        rest = [item for item in items if not isinstance(item, Receive)]
        assert rest == [item for item in compiled if not isinstance(item, Receive)]
        for sender, forward in itertools.product(pipeline.ranks, (False, True)):
            expected = receives(compiled, sender, forward=forward)
            assert receives(items, sender, forward=forward) == expected
        actions = [item for item in items if isinstance(item, Action)]
        for place, action in enumerate(actions):
            at_the_latest = items.index(actions[max(0, place - ACTIONS_AHEAD)])
            for message in program.around[action].arriving:
                if message.sender != rank:
                    assert items.index(Receive(message)) < at_the_latest
        for before, item in itertools.pairwise(items):
            assert not (isinstance(item, Send) and isinstance(before, Receive))
