"""Stopping when asked: after the next checkpoint, on every rank; what follows is the same training."""

from pathlib import Path
from typing import Any


def test_a_training_that_is_asked_to_stop_does_so_after_its_next_checkpoint_and_goes_on(
    rank_pool: Any, make_package: Any, tmp_path: Path
) -> None:
    package = make_package("mlp", [1, 1], 2, "1f1b")
    options = {"epochs": 1, "max_steps": 4, "evaluate": False}
    whole = rank_pool.run("training", 2, options=options, settings={}, **package.arguments)
    stopped = rank_pool.run(
        "training_that_is_asked_to_stop", 2, folder=str(tmp_path), settings={}, **package.arguments
    )
    for (first, rest), undisturbed in zip(stopped, whole, strict=True):
        assert first.stopped and not rest.stopped
        assert len(first.losses) == rest.first_step == 2
        assert first.losses + rest.losses == undisturbed.losses
