"""Gradient sums beside the backward: the same sums, started early, never of a gradient that still grows."""

from typing import Any

import pytest

RankPool = Any
MakePackage = Any


@pytest.mark.timeout(60)
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_buckets_are_summed_beside_the_backward_and_exactly(
    rank_pool: RankPool, num_ranks: int
) -> None:
    """A layer that is called twice, one that no rank calls, and a rank without any unit."""
    for started, difference, is_none in rank_pool.run("bucketed_sums", num_ranks):
        assert difference <= 1e-15
        assert is_none
        if started:  # The last rank has no unit.
            before_first_layer, after = started
            assert 0 < before_first_layer < after


@pytest.mark.timeout(60)
def test_a_gradient_that_grows_after_it_was_sent_is_refused(rank_pool: RankPool) -> None:
    for said in rank_pool.run("late_gradient", 2):
        assert "parameter 'weight' gets its gradient in several parts" in said
        assert "--no-overlap" in said


@pytest.mark.timeout(60)
def test_training_with_and_without_overlap_is_bitwise_the_same(
    rank_pool: RankPool, make_package: MakePackage
) -> None:
    package = make_package("gpt.py:build_without_dropout", [[2, 1], 1], 5, "1f1b")
    with_it, without = (
        rank_pool.run("steps", 3, num_steps=2, settings={"overlap": overlap}, **package.arguments)
        for overlap in (True, False)
    )
    for (losses, state), (other_losses, other_state) in zip(with_it, without, strict=True):
        assert losses == other_losses
        assert all((state[name] == other_state[name]).all() for name in state)
