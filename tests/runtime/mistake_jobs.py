"""What ranks do in the tests of mistakes: of the user's options, models and own code; run as rank_jobs.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from stagewright.document import InputError
from stagewright.runtime.ranks.faults import PeerLostError, waiting_for
from stagewright.runtime.ranks.world import World
from stagewright.runtime.session import Session
from stagewright.runtime.training.settings import Settings
from stagewright.runtime.training.trainer import TrainingOptions, train


def training_with_options_of_each_rank(
    world: World,
    directory: str,
    task: str,
    settings: Sequence[dict[str, Any]],
    options: Sequence[dict[str, Any]],
) -> str:
    """Train with options that differ between ranks; return what is said."""
    try:
        session = Session.start(Path(directory), task, world, Settings(**settings[world.rank]))
        train(session, TrainingOptions(**options[world.rank]), progress=False)
    except InputError as error:
        return str(error)
    return ""


def buffers_changed_without_a_unit(world: World, directory: str, task: str) -> list[list[float]]:
    """Set a running mean to the rank's number before any micro-batch; return it averaged."""
    session = Session.start(Path(directory), task, world, Settings())
    found = [t for name, t in session.tensors.items() if name.endswith("running_mean")]
    for tensor in found:
        tensor.fill_(world.rank)
    session.average_buffers()
    return [tensor.tolist() for tensor in found]


def modes_after_an_evaluation(world: World, directory: str, task: str) -> tuple[bool, bool]:
    """Put one layer in eval mode and evaluate; return whether it, and its stage, are in training mode."""
    session = Session.start(Path(directory), task, world, Settings())
    (stage,) = session.modules
    layer = next(module for module in stage.modules() if not list(module.children()))
    layer.eval()
    train(session, TrainingOptions(epochs=1, max_steps=1), progress=False)
    return layer.training, stage.training


def error_in_a_wait(world: World, case: str) -> tuple[str, str]:
    """Meet an error in a wait; return its type and what it says."""
    try:
        with waiting_for("the others"):
            if case == "shapes":
                torch.zeros(3) + torch.zeros(4)
            elif case == "sparse":
                dist.all_reduce(torch.eye(3).to_sparse_csr(), group=world.control)
            elif world.rank == 0:
                dist.recv(torch.zeros(1), 1, group=world.control)
    except (PeerLostError, RuntimeError) as error:
        return type(error).__name__, str(error)
    return "", ""
