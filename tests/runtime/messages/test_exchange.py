"""Exchange between real ranks: any payload arrives as sent, buffers are pooled, wrong plans are refused."""

from pathlib import Path
from typing import Any

import pytest

from stagewright.runtime.execution.rank_program import ACTIONS_AHEAD

RankPool = Any
MakePackage = Any
TASK = str(Path(__file__).parent / "ragged_task.py")


@pytest.mark.timeout(60)
def test_payloads_of_all_kinds_arrive_in_order(rank_pool: RankPool) -> None:
    sent, received = rank_pool.run("exchange_payloads", 2, num_units=6)
    assert received == sent
    assert len(sent) == 12


@pytest.mark.timeout(60)
def test_ends_that_disagree_on_a_static_border_say_so_before_anything_is_received(
    rank_pool: RankPool,
) -> None:
    _, said = rank_pool.run("exchange_with_another_plan", 2)
    assert (
        "from stage 0 (rank 0) to stage 1 (rank 1): the sender's tensor 0 has shape (3, 4)" in said
    )
    assert "expected (3, 5)" in said


@pytest.mark.timeout(60)
@pytest.mark.parametrize("task", ["mlp", TASK])
def test_after_the_first_step_no_buffer_is_made(
    rank_pool: RankPool, make_package: MakePackage, task: str
) -> None:
    package = make_package(task, [1, 1], 8, "1f1b")
    arguments = {"num_steps": 4 if task == "mlp" else 12, "settings": {}, **package.arguments}
    for rank, made in enumerate(rank_pool.run("buffers_made", 2, **arguments)):
        per_message = len(package.plan.borders[0].values) + 1
        held = package.plan.rows.units_in_flight(rank, rank)
        in_use = held + 1 + ACTIONS_AHEAD
        assert 0 < made[0] <= in_use * per_message
        if task == "mlp":
            assert len(set(made)) == 1
        else:  # Ragged: until every common size was there once.
            assert made[-3] == made[-1]
