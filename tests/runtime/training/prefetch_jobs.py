"""What ranks do in the tests of samples that are read ahead."""

import multiprocessing
from pathlib import Path
from typing import Any

from stagewright.runtime.ranks.world import World
from stagewright.runtime.session import Session
from stagewright.runtime.training.data import TrainingData
from stagewright.runtime.training.settings import Settings
from stagewright.runtime.training.trainer import TrainingOptions, train


def trained(
    world: World, directory: str, task: str, prefetch: int
) -> tuple[list[float], list[float | None], int]:
    """Train two epochs, nothing read here if some is read ahead; return losses and processes left."""
    session = Session.start(Path(directory), task, world, Settings())
    read_here = TrainingData._read_here

    def refuse(*_: Any) -> Any:
        raise AssertionError("the rank reads samples itself")

    if prefetch:
        TrainingData._read_here = refuse  # type: ignore[assignment,method-assign]
    try:
        options = TrainingOptions(epochs=2, prefetch=prefetch)
        history = train(session, options, progress=False)
    finally:
        TrainingData._read_here = read_here  # type: ignore[method-assign]
    tested = [epoch.test_loss for epoch in history.epochs]
    return history.losses, tested, len(multiprocessing.active_children())
