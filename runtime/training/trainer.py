"""Training: epochs over a task's dataset, evaluation, checkpoints and resuming."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from stagewright.document import InputError
from stagewright.runtime.ranks.world import shake_hands
from stagewright.runtime.session import Session
from stagewright.runtime.storage.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    read_tensors,
    restore_optimizer,
)
from stagewright.runtime.storage.folders import newest_checkpoint
from stagewright.runtime.storage.saving import CheckpointSaver
from stagewright.runtime.storage.weights import state_of_stages
from stagewright.runtime.watching.metrics import EpochMetrics, own_step
from stagewright.runtime.watching.watch import Watch, WatchOptions

from .data import TrainingData
from .settings import options_that_agree
from .stopping import is_stop_requested
from .updating import class_name

KEPT = 2
"""Checkpoints that are kept."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How long to train and when to save."""

    epochs: int
    max_steps: int | None = None
    """Stop after so many steps in all."""
    checkpoint_folder: Path | None = None
    checkpoint_every: int | None = None
    """Steps between checkpoints; None: at the end of every epoch."""
    keep: int | None = None
    """Checkpoints to keep; None: KEPT."""
    checkpoint_async: bool = False
    """Whether checkpoints are written while training goes on."""
    resume: bool = False
    evaluate: bool = True
    """Whether to evaluate on the held-out split at the end of every epoch."""
    prefetch: int = 0
    """Processes per rank that read samples ahead of training; 0: the rank reads them itself."""
    watch: WatchOptions = field(default_factory=WatchOptions)

    def __post_init__(self) -> None:
        """Raise InputError if something is wanted of checkpoints, but there is no folder for them."""
        wanted = {
            "--checkpoint-every": self.checkpoint_every is not None,
            "--checkpoint-async": self.checkpoint_async,
            "--keep": self.keep is not None,
            "--resume": self.resume,
        }
        for option, is_given in wanted.items():
            if is_given and self.checkpoint_folder is None:
                raise InputError(
                    f"{option} needs --checkpoint FOLDER; name the folder, or leave it out"
                )


@dataclass
class History:
    """What a training gave."""

    first_step: int = 0
    """Not 0 where it resumed."""
    losses: list[float] = field(default_factory=list)
    """Mean loss of each step of this run."""
    epochs: list[EpochMetrics] = field(default_factory=list)
    stopped: bool = False
    """Whether it ended after a checkpoint because it was asked to (stopping.py)."""


def train(session: Session, options: TrainingOptions, *, progress: bool) -> History:
    """Train and return the history; every rank calls this at the same time.

    Raises:
        InputError: the dataset is too small, or a checkpoint does not fit.
        PeerLostError: another rank died or is stuck.
    """
    shake_hands(session.world, options_that_agree(options, "watch"))
    data = TrainingData(session)
    resumed = _resume(session, options)
    history = History(first_step=0 if resumed is None else resumed.step)
    planned = last = options.epochs * data.steps_per_epoch
    if options.max_steps is not None:
        last = min(last, options.max_steps)
    saver = _saver_of(session, options)
    extent = {"num_steps": last, "first_step": history.first_step}
    watch = Watch(session.world, options.watch, **extent, progress=progress)
    runs = partial(_runs_of_steps, session, options, history.first_step, last, data.steps_per_epoch)

    def ends_epoch(step: int) -> bool:
        return (step + 1) % data.steps_per_epoch == 0 or step + 1 == last

    def is_evaluated(step: int) -> bool:
        return options.evaluate and ends_epoch(step)

    with (
        data.reading_ahead(options.prefetch, runs(), is_evaluated),
        nullcontext() if saver is None else saver.telling_first(),
    ):
        for steps in runs():
            with watch.trace.around(steps, session.executor):
                done = session.train_steps(data.of_step, steps, planned)
            for step, (times, step_losses) in zip(steps, done, strict=True):
                epoch, position = divmod(step, data.steps_per_epoch)
                rate = session.settings.learning_rate_at(step, planned)
                place = {"step": step + 1, "epoch": epoch, "num_samples": session.batch_size}
                own = own_step(times, step_losses, **place, learning_rate=rate)
                history.losses += watch.add(own)
            if saver is not None:
                saver.check()
            is_saved = step + 1 == last or _is_due(options, step + 1, ends_epoch(step))
            if ends_epoch(step) or (is_saved and saver is not None):
                # Before a checkpoint too: a resumed run finds the metrics of all steps done.
                history.losses += watch.gather()
                loss_sum = _epoch_loss_sum(history.losses, position + 1, resumed)
            if ends_epoch(step):
                mean = None if loss_sum is None else loss_sum / (position + 1)
                tested = _evaluate(session, data) if is_evaluated(step) else (None, None)
                history.epochs.append(_epoch_metrics(epoch, step, mean, *tested))
                watch.end_epoch(history.epochs[-1])
            if is_saved and saver is not None:
                _save(session, saver, step + 1, loss_sum)
                history.stopped = step + 1 < last and is_stop_requested(saver.folder, session.world)
                if history.stopped:
                    break
    if saver is not None:
        saver.finish()
    watch.close()
    return history


def _is_due(options: TrainingOptions, steps_done: int, ends_epoch: bool) -> bool:
    """Return whether a checkpoint is due."""
    if options.checkpoint_every is None:
        return ends_epoch
    return steps_done % options.checkpoint_every == 0


def _epoch_loss_sum(
    losses: list[float], num_steps: int, resumed: Checkpoint | None
) -> float | None:
    """Return the sum of an epoch's losses so far, to the bit that of a run that was not interrupted.

    Args:
        losses: of the steps of this run.
        num_steps: of the epoch so far; those that are not of this run are in the checkpoint's sum.
        resumed: where this run began.
    """
    own = losses[-num_steps:]
    total: float | None = 0.0
    if len(own) < num_steps:
        total = None if resumed is None else resumed.epoch_loss_sum
    for loss in own:
        total = None if total is None else total + loss
    return total


def _epoch_metrics(
    epoch: int, step: int, train: float | None, test: float | None, metric: float | None
) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch, step=step + 1, train_loss=train, test_loss=test, test_metric=metric
    )


def _evaluate(session: Session, data: TrainingData) -> tuple[float | None, float | None]:
    """Return mean loss and metric on the held-out split; None where the task has no such thing."""
    session.world.whereabouts.enter("the evaluation")
    batches = data.of_evaluation()
    return (None, None) if batches is None else session.evaluate(batches)


def _runs_of_steps(
    session: Session, options: TrainingOptions, first: int, last: int, steps_per_epoch: int
) -> Iterator[range]:
    """Yield the steps between which the pipeline is empty.

    With flush that is each step. Without, it runs on to the end of the epoch or to the next checkpoint.
    """
    ends = [steps_per_epoch]
    if options.checkpoint_folder is not None and options.checkpoint_every is not None:
        ends.append(options.checkpoint_every)
    while first < last:
        until = min(last, *(first + end - first % end for end in ends))
        if session.windows is None:
            until = first + 1
        yield range(first, until)
        first = until


def _saver_of(session: Session, options: TrainingOptions) -> CheckpointSaver | None:
    folder = options.checkpoint_folder
    if folder is None:
        return None
    background = options.checkpoint_async
    keep = KEPT if options.keep is None else options.keep
    return CheckpointSaver(folder, session.world, keep, in_background=background)


def _save(
    session: Session, saver: CheckpointSaver, step: int, epoch_loss_sum: float | None
) -> None:
    session.world.whereabouts.enter(f"the checkpoint after step {step}")
    session.average_buffers()
    saved = session.left_out | state_of_stages(session.modules)
    if session.optimizer is not None:
        saved |= optimizer_tensors(session.optimizer, session.reduction.parameters)
    content = Checkpoint(
        step=step,
        seed=session.settings.seed,
        batch_size=session.batch_size,
        optimizer=session.settings.optimizer,
        plan_sha256=session.package.plan_sha256,
        files=(),
        loss_scale=None if session.scaler is None else session.scaler.state,
        epoch_loss_sum=epoch_loss_sum,
    )
    saver.save(saved, content)


def _resume(session: Session, options: TrainingOptions) -> Checkpoint | None:
    """Load the newest checkpoint if asked to; return what it says, None without one."""
    if not options.resume:
        return None
    assert options.checkpoint_folder is not None
    path = newest_checkpoint(options.checkpoint_folder)
    newest = "none" if path is None else path.name
    shake_hands(session.world, {"the newest complete checkpoint": newest})
    if path is None:
        return None
    content = load_checkpoint(path)
    settings = session.settings
    expected = {
        "seed": (content.seed, settings.seed),
        "batch_size": (content.batch_size, session.batch_size),
        "optimizer": (class_name(content.optimizer), class_name(settings.optimizer)),
    }
    for name, (found, wanted) in expected.items():
        if found != wanted:
            raise InputError(
                f"{path / 'checkpoint.json'}: {name} is {found!r}, but this run has {wanted!r}; "
                f"the losses would not continue: use the same {name}"
            )
    held = state_of_stages(session.modules)
    found = read_tensors(path, content, held, session.reduction.parameters, session.left_out)
    session.left_out |= {n: t for n, t in found.items() if n in session.left_out}
    with torch.no_grad():
        for name, tensor in held.items():
            tensor.copy_(found[name])
    if session.optimizer is not None:
        restore_optimizer(session.optimizer, session.reduction.parameters, found)
    if session.scaler is not None and content.loss_scale is not None:
        session.scaler.state = content.loss_scale
    session.reduction.agree_on_buffers()
    return content
