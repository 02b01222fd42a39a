"""What ranks do in the tests: functions of a World, run by the pool of ranks (conftest.py)."""

import os
import signal
from collections import deque
from pathlib import Path
from typing import Any

import torch

from stagewright.runtime.batches import DataOrder, MicrobatchData
from stagewright.runtime.report import make_report
from stagewright.runtime.session import Session, Settings
from stagewright.runtime.storage.weights import save_tensors, state_of_stages
from stagewright.runtime.trainer import TrainingOptions, train
from stagewright.runtime.world import World


def start(world: World, directory: str, task: str, settings: dict[str, Any]) -> Session:
    return Session.start(Path(directory), task, world, Settings(**settings))


def step_data(session: Session, step: int) -> MicrobatchData:
    """Return the data of one step of the first epoch."""
    plan, seed = session.plan, session.settings.seed
    dataset = session.task.function("dataset")("train")
    order = DataOrder(len(dataset), plan.microbatch_size, plan.num_microbatches, seed)
    microbatches = [order.indices(0, step, m) for m in range(plan.num_microbatches)]
    key = (seed, 0, step, "sample")
    return MicrobatchData(dataset, microbatches, plan.inputs, session.dtype, world_device(), key)


def world_device() -> torch.device:
    return torch.device("cpu")


def gradients(world: World, **arguments: Any) -> tuple[dict[int, float], dict[str, Any]]:
    """Return this rank's losses and summed gradients of one step."""
    session = start(world, **arguments)
    losses = session.compute_gradients(step_data(session, 0), 0)
    named = {
        name: None if p.grad is None else p.grad.numpy()
        for name, p in session.reduction.parameters.items()
    }
    return losses, named


def steps(
    world: World, num_steps: int, **arguments: Any
) -> tuple[list[dict[int, float]], dict[str, Any]]:
    """Return this rank's losses of some steps and its part of the state dict after them."""
    session = start(world, **arguments)
    losses = [session.train_step(step_data(session, step), step) for step in range(num_steps)]
    session.average_buffers()
    return losses, {name: t.numpy() for name, t in state_of_stages(session.modules).items()}


def training(world: World, options: dict[str, Any], **arguments: Any) -> Any:
    """Run the trainer and return its history."""
    return train(start(world, **arguments), TrainingOptions(**options), progress=False)


def peak_units(world: World, **arguments: Any) -> int:
    """Return the most units that this rank's stages held at once in one step."""
    session = start(world, **arguments)
    most = 0
    for runner in session.executor.stages.values():
        forward = runner.forward

        def counted(*args: Any, runner: Any = runner, forward: Any = forward) -> Any:
            nonlocal most
            result = forward(*args)
            most = max(most, runner.units_held)
            return result

        vars(runner)["forward"] = counted
    session.compute_gradients(step_data(session, 0), 0)
    return most


def stop_itself(world: World, victim: int, signal_number: int) -> None:
    """Send one rank a signal."""
    if world.rank == victim:
        os.kill(os.getpid(), signal_number)
    assert signal.Signals(signal_number)


def trained_weights(world: World, options: dict[str, Any], output: str, **arguments: Any) -> None:
    """Run the trainer and write the weights, as the command does."""
    session = start(world, **arguments)
    train(session, TrainingOptions(**options), progress=False)
    weights = session.final_weights()
    if weights is not None:
        save_tensors(Path(output), weights, {})


def measured_steps(
    world: World, num_steps: int, keep: int, **arguments: Any
) -> tuple[int, int, int]:
    """Return how many steps' times a session keeps, how many it ran, and how many the report counts."""
    session = start(world, **arguments)
    session.measured = deque(maxlen=keep)
    for step in range(num_steps):
        session.train_step(step_data(session, step), step)
    report = make_report(session)
    assert report is not None
    return len(session.measured), session.num_steps_run, report.num_steps
