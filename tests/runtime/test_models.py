"""Every model in three stages on three ranks: the losses of five steps are one process's."""

from typing import Any

import pytest
import torch

from .one_process import one_process, total_of

RankPool = Any
MakePackage = Any
NUM_STEPS = 5


def losses_of(rank_pool: RankPool, package: Any, dtype: str = "float64") -> list[float]:
    results = rank_pool.run(
        "steps",
        package.num_ranks,
        timeout_s=60.0,
        num_steps=NUM_STEPS,
        settings={"dtype": dtype},
        **package.arguments,
    )
    return [total_of([losses[step] for losses, _ in results]) for step in range(NUM_STEPS)]


@pytest.mark.parametrize("name", ["densenet", "unet", "experts"])
def test_a_model_without_dropout_trains_as_the_original_in_a_plain_loop(
    rank_pool: RankPool, make_package: MakePackage, name: str
) -> None:
    package = make_package(f"{name}.py:build_small", [1, 1, 1], 2, "1f1b")
    expected, _ = one_process(
        package.task, package.microbatch_size, 2, torch.float64, num_steps=NUM_STEPS
    )
    assert losses_of(rank_pool, package) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["alexnet", "inception", "gnmt"])
def test_a_model_with_dropout_trains_as_in_one_stage(
    rank_pool: RankPool, make_package: MakePackage, name: str
) -> None:
    found, expected = (
        losses_of(rank_pool, make_package(f"{name}.py:build_small", replicas, 2, "1f1b"))
        for replicas in ([1, 1, 1], [1])
    )
    assert found == pytest.approx(expected, rel=1e-9)
