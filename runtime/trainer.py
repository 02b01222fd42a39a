"""Training: epochs over a task's dataset, evaluation, checkpoints and resuming."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from stagewright.document import InputError

from .batches import DataOrder, MicrobatchData, in_order
from .faults import waiting_for
from .session import Session
from .storage.checkpoint import (
    Checkpoint,
    load_checkpoint,
    newest_checkpoint,
    optimizer_tensors,
    read_tensors,
    restore_optimizer,
    save_checkpoint,
)
from .storage.weights import state_of_stages


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How long to train and when to save."""

    epochs: int
    max_steps: int | None = None
    """Stop after so many steps in all."""
    checkpoint_folder: Path | None = None
    checkpoint_every: int | None = None
    """Steps between checkpoints; None: at the end of every epoch."""
    keep: int = 2
    resume: bool = False
    evaluate: bool = True
    """Whether to evaluate on the held-out split at the end of every epoch."""


@dataclass
class EpochResult:
    """What one epoch gave, the same on every rank."""

    epoch: int
    step: int
    """Steps done since the start of training."""
    train_loss: float
    test_loss: float | None
    test_metric: float | None


@dataclass
class History:
    """What a training gave."""

    first_step: int = 0
    """Not 0 where it resumed."""
    losses: list[float] = field(default_factory=list)
    """Mean loss of each step."""
    epochs: list[EpochResult] = field(default_factory=list)


def train(session: Session, options: TrainingOptions, *, progress: bool) -> History:
    """Train and return the history; every rank calls this at the same time.

    Raises:
        InputError: the dataset is too small, or a checkpoint does not fit.
        PeerLostError: another rank died or is stuck.
    """
    plan, task, seed = session.plan, session.task, session.settings.seed
    dataset = task.call("dataset", "train")
    order = DataOrder(len(dataset), plan.microbatch_size, plan.num_microbatches, seed)
    history = History(first_step=_resume(session, options))
    last = options.epochs * order.steps_per_epoch
    if options.max_steps is not None:
        last = min(last, options.max_steps)
    bar = tqdm(total=last, initial=history.first_step, unit="step", disable=not progress)
    own_losses: list[dict[int, float]] = []
    for step in range(history.first_step, last):
        epoch, position = divmod(step, order.steps_per_epoch)
        microbatches = [order.indices(epoch, position, m) for m in range(plan.num_microbatches)]
        own_losses.append(
            session.train_step(
                _data(session, dataset, microbatches, epoch, position),
                step,
                options.epochs * order.steps_per_epoch,
            )
        )
        bar.update()
        ends_epoch = position + 1 == order.steps_per_epoch or step + 1 == last
        if ends_epoch:
            history.losses += _step_losses(session, own_losses)
            own_losses = []
            losses = history.losses[-(position + 1) :]
            evaluation = _evaluate(session) if options.evaluate else (None, None)
            result = EpochResult(epoch, step + 1, sum(losses) / len(losses), *evaluation)
            history.epochs.append(result)
            bar.set_postfix_str(describe(result))
        due = options.checkpoint_every is not None and (step + 1) % options.checkpoint_every == 0
        if options.checkpoint_folder is not None and (
            due or (ends_epoch and options.checkpoint_every is None) or step + 1 == last
        ):
            _save(session, options, step + 1)
    bar.close()
    return history


def describe(result: EpochResult) -> str:
    """Return one line about an epoch."""
    text = f"epoch {result.epoch + 1}: train loss {result.train_loss:.4f}"
    if result.test_loss is not None:
        text += f", held-out loss {result.test_loss:.4f}"
    if result.test_metric is not None:
        text += f", held-out metric {result.test_metric:.4f}"
    return text


def _data(
    session: Session, dataset: Any, microbatches: list[Any], *key: int | str
) -> MicrobatchData:
    return MicrobatchData(
        dataset,
        microbatches,
        session.plan.inputs,
        session.dtype,
        session.world.device,
        (session.settings.seed, *key, "sample"),
    )


def _step_losses(session: Session, own: list[dict[int, float]]) -> list[float]:
    """Return the mean loss of each step from all ranks' weighted losses, in the order of micro-batches."""
    everyone: list[list[dict[int, float]]] = [own]
    if session.world.control is not None:
        everyone = [[] for _ in range(session.world.size)]
        with waiting_for("the losses of the epoch"):
            dist.all_gather_object(everyone, own, group=session.world.control)
    losses = []
    for step in range(len(own)):
        merged: dict[int, float] = {}
        for rank_losses in everyone:
            merged |= rank_losses[step]
        losses.append(sum(merged[microbatch] for microbatch in sorted(merged)))
    return losses


def _evaluate(session: Session) -> tuple[float | None, float | None]:
    """Return mean loss and metric on the held-out split; None where the task has no such thing."""
    test = session.task.call("dataset", "test")
    if test is None or not len(test):
        return None, None
    microbatches = in_order(len(test), session.plan.microbatch_size)
    return session.evaluate(_data(session, test, list(microbatches), "test"), len(microbatches))


def _save(session: Session, options: TrainingOptions, step: int) -> None:
    assert options.checkpoint_folder is not None
    session.average_buffers()
    state = state_of_stages(session.modules)
    saved = session.left_out | {name: state[name] for name in session.reduction.owned_state}
    if session.optimizer is not None:
        owned = {
            name: parameter
            for name, parameter in session.reduction.parameters.items()
            if name in session.reduction.owned
        }
        saved |= optimizer_tensors(session.optimizer, owned)
    content = Checkpoint(
        step=step,
        seed=session.settings.seed,
        batch_size=session.plan.batch_size,
        optimizer=session.settings.optimizer,
        plan_sha256=session.package.plan_sha256,
        files=(),
    )
    save_checkpoint(options.checkpoint_folder, session.world, saved, content, options.keep)


def _resume(session: Session, options: TrainingOptions) -> int:
    """Load the newest checkpoint if asked to; return the number of steps that are done."""
    if not options.resume:
        return 0
    folder = options.checkpoint_folder
    if folder is None:
        raise InputError("--resume needs --checkpoint FOLDER; name the folder to resume from")
    path = newest_checkpoint(folder)
    if path is None:
        return 0
    content = load_checkpoint(path)
    expected = {
        "seed": session.settings.seed,
        "batch_size": session.plan.batch_size,
        "optimizer": session.settings.optimizer,
    }
    for name, value in expected.items():
        if getattr(content, name) != value:
            raise InputError(
                f"{path / 'checkpoint.json'}: {name} is {getattr(content, name)!r}, but this run has "
                f"{value!r}; the losses would not continue: use the same {name}"
            )
    held = state_of_stages(session.modules)
    found = read_tensors(path, content, held, session.reduction.parameters, session.left_out)
    session.left_out |= {n: t for n, t in found.items() if n in session.left_out}
    with torch.no_grad():
        for name, tensor in held.items():
            tensor.copy_(found[name])
    if session.optimizer is not None:
        restore_optimizer(session.optimizer, session.reduction.parameters, found)
    session.reduction.agree_on_buffers()
    return content.step
