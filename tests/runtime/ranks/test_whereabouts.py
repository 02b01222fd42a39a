"""Whereabouts: the line that ends a rank names its rank, stage, replica, step, action and unit."""

from typing import Any

import pytest

from stagewright.program import Message, Send
from stagewright.runtime.ranks.whereabouts import Whereabouts, place_of
from stagewright.schedule import Action, Edge


def test_a_place_names_every_stage_of_a_rank(make_package: Any) -> None:
    plan = make_package("mlp", [1, 2], 2, "1f1b").plan
    assert place_of(plan, 0) == "rank 0 (stage 0, replica 0 of 1)"
    assert place_of(plan, 2) == "rank 2 (stage 1, replica 1 of 2)"


MESSAGE = Message(Edge(0, 1), 5, True, 0, 2)


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        (Action(1, "B", 3), "rank 4, in step 7 at 1B3 (backward of micro-batch 3)"),
        (None, "rank 4, in step 7"),
        (
            Send(MESSAGE),
            "rank 4, in step 7 at the send of the values of micro-batch 5 from stage 0 (rank 0) "
            "to stage 1 (rank 2)",
        ),
    ],
)
def test_the_words_name_what_the_rank_does(instruction: Any, words: str) -> None:
    whereabouts = Whereabouts("rank 4")
    assert str(whereabouts) == "rank 4"
    whereabouts.enter("step 7")
    whereabouts.instruction = instruction
    assert str(whereabouts) == words


def test_another_phase_forgets_the_action() -> None:
    whereabouts = Whereabouts("rank 4", "step 7", Action(1, "B", 3))
    whereabouts.enter("the checkpoint after step 7")
    assert str(whereabouts) == "rank 4, in the checkpoint after step 7"
