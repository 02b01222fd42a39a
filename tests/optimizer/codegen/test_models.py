"""Stages of larger models: outputs, gradients and buffers are the original's bit by bit, cut anywhere.

`make cuts` checks every single cut of each and 200 random sets of cuts.
"""

import os
import random
from typing import Any

import pytest
import torch

from stagewright.optimizer.borders import chain_of

from .test_stage import check_full_model

EVERY_CUT = os.environ.get("STAGEWRIGHT_CUTS") == "all"


@pytest.mark.parametrize("name", ["densenet", "inception", "unet", "gnmt", "experts"])
def test_outputs_and_gradients_are_bit_equal_where_a_model_is_cut(
    name: str, workshop: Any, subjects: Any
) -> None:
    build, example_input = subjects[name]
    torch.manual_seed(0)
    original = build()
    graph = workshop.trace(original, example_input)
    length, rng = len(chain_of(graph)), random.Random(7)
    cuts = [tuple(sorted(rng.sample(range(1, length), 1 + i))) for i in range(2)]
    if EVERY_CUT:
        cuts = [(cut,) for cut in range(1, length)]
        cuts += [tuple(sorted(rng.sample(range(1, length), rng.randint(2, 6)))) for _ in range(40)]
    for chosen in cuts:
        check_full_model(workshop.package(graph, chosen), original, watched_inputs(example_input))


def watched_inputs(example_input: Any) -> Any:
    inputs = example_input(2)
    return (
        dict(zip(("source", "before"), inputs, strict=True))
        if isinstance(inputs, tuple)
        else inputs
    )
