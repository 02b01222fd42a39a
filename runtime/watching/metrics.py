"""Metrics: what every step gave, gathered from all ranks every few steps.

A rank knows its own losses and times only, and asking all others costs more than a small step. So ranks keep
what they have and put it together when a watcher is due (`--watch-every`), at the end of an epoch, or both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.distributed as dist

from stagewright.document import Record
from stagewright.runtime.ranks.faults import waiting_for
from stagewright.runtime.ranks.world import World
from stagewright.runtime.training.step_times import StepTimes


class StepMetrics(Record):
    """One training step, over all ranks; all but the loss and the rates are measured times."""

    step: int
    """Steps done since the start of training, this one included."""
    epoch: int
    """From 0."""
    loss: float
    """Mean over the step's samples."""
    learning_rate: float
    gradient_norm: float | None
    """Of all gradients of the model, before clipping; None: not clipped."""
    num_samples: int
    samples_per_s: float
    """Within the step: evaluations and checkpoints between steps do not count."""
    step_ms: float
    """Of the slowest rank."""
    bubble_share: float
    """Part of the step in which a rank computed nothing: the mean over the ranks."""


class EpochMetrics(Record):
    """One epoch with its evaluation."""

    step: int
    """Steps done since the start of training."""
    epoch: int
    """From 0."""
    train_loss: float | None
    """None: it is read from a file and was not finite."""
    test_loss: float | None
    test_metric: float | None


@dataclass(frozen=True, kw_only=True)
class OwnStep:
    """One step as one rank has it."""

    step: int
    epoch: int
    num_samples: int
    learning_rate: float
    losses: Mapping[int, float]
    """Weighted losses by micro-batch; none but on loss ranks."""
    step_s: float
    busy_s: float
    gradient_norm: float | None


def own_step(
    times: StepTimes,
    losses: Mapping[int, float],
    *,
    step: int,
    epoch: int,
    num_samples: int,
    learning_rate: float,
) -> OwnStep:
    """Return a step that this rank has just done."""
    return OwnStep(
        step=step,
        epoch=epoch,
        num_samples=num_samples,
        learning_rate=learning_rate,
        losses=losses,
        step_s=times.step_s,
        busy_s=times.busy_s,
        gradient_norm=times.gradient_norm,
    )


def gather_steps(world: World, own: Sequence[OwnStep]) -> list[StepMetrics]:
    """Return the same steps over all ranks; every rank calls this at the same time.

    Raises:
        PeerLostError: another rank died or is stuck.
    """
    everyone: list[Sequence[OwnStep]] = [own]
    if world.control is not None:
        everyone = [() for _ in range(world.size)]
        with waiting_for("the losses of all ranks"):
            dist.all_gather_object(everyone, own, group=world.control)
    return [_merged(same) for same in zip(*everyone, strict=True)]


def _merged(ranks: Sequence[OwnStep]) -> StepMetrics:
    """Return one step from what all ranks have; losses are added in the order of micro-batches."""
    first = ranks[0]
    losses: dict[int, float] = {}
    for own in ranks:
        losses |= own.losses
    slowest_s = max(own.step_s for own in ranks)
    busy_s = sum(own.busy_s for own in ranks)
    return StepMetrics(
        step=first.step,
        epoch=first.epoch,
        loss=sum(losses[microbatch] for microbatch in sorted(losses)),
        learning_rate=first.learning_rate,
        gradient_norm=first.gradient_norm,
        num_samples=first.num_samples,
        samples_per_s=first.num_samples / slowest_s,
        step_ms=slowest_s * 1e3,
        bubble_share=max(0.0, 1 - busy_s / (len(ranks) * slowest_s)),
    )
