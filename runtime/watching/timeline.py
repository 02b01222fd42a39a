"""The timeline: what every rank did in one measured step, on one clock."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from stagewright.document import Record
from stagewright.runtime.ranks.faults import waiting_for
from stagewright.runtime.ranks.world import World
from stagewright.runtime.training.step_times import StepTimes

ROUND_TRIPS = 8


class TimelineEvent(Record):
    """Something that a rank did: an action ("0F3"), "reduce" (with its waits) or "update"."""

    what: str
    start_ms: float
    """Since the first rank began the step."""
    end_ms: float


class MeasuredTimeline(Record):
    """One step."""

    ranks: tuple[tuple[TimelineEvent, ...], ...]
    """Per rank, in order."""


def measure_timeline(
    world: World, own: Sequence[StepTimes], ranks_ms: Sequence[Sequence[float]]
) -> MeasuredTimeline | None:
    """Return a typical step, the one of median time; every rank calls this at the same time.

    Args:
        own: this rank's steps.
        ranks_ms: for each rank the times of the same steps.

    Returns:
        None if there are no steps.
    """
    slowest_ms = [max(step) for step in zip(*ranks_ms, strict=True)]
    if not slowest_ms:
        return None
    typical = own[slowest_ms.index(statistics.median_low(slowest_ms))]
    offset_s = _clock_offset_s(world)
    events = [(what, start + offset_s, end + offset_s) for what, start, end in _events(typical)]
    everyone: list[Any] = [events]
    if world.control is not None:
        everyone = [None] * world.size
        with waiting_for("the timelines of all ranks"):
            dist.all_gather_object(everyone, events, group=world.control)
    origin_s = min(start for rank in everyone for _, start, _ in rank)
    return MeasuredTimeline(
        ranks=tuple(
            tuple(
                TimelineEvent(
                    what=what, start_ms=(start - origin_s) * 1e3, end_ms=(end - origin_s) * 1e3
                )
                for what, start, end in rank
            )
            for rank in everyone
        )
    )


def _events(step: StepTimes) -> list[tuple[str, float, float]]:
    """Return what a rank did in a step, in seconds of its own clock."""
    events = [(str(item.action), item.start_s, item.end_s) for item in step.actions]
    end_s = step.start_s + step.step_s
    update_s = step.update_s or 0.0
    if step.reduce_s > 0:
        reduced_s = end_s - update_s
        events.append(("reduce", reduced_s - step.reduce_s, reduced_s))
    if update_s > 0:
        events.append(("update", end_s - update_s, end_s))
    return events


def _clock_offset_s(world: World) -> float:
    """Return what to add to this rank's time.perf_counter to get rank 0's, as of now.

    Rank 0 answers with its time; the quickest of some round trips counts, its answer taken as of the middle.
    Source: Cristian, "Probabilistic clock synchronization", Distributed Computing 3, 1989.
    """
    if world.control is None:
        return 0.0
    offset_s = 0.0
    with waiting_for("the clocks of all ranks"):
        for rank in range(1, world.size):
            if world.rank == 0:
                _answer_with_time(rank, world.control)
            elif world.rank == rank:
                offset_s = _ask_for_time(world.control)
    return offset_s


def _answer_with_time(rank: int, group: dist.ProcessGroup) -> None:
    asked = torch.zeros(1, dtype=torch.float64)
    for _ in range(ROUND_TRIPS):
        dist.recv(asked, rank, group=group)
        dist.send(torch.tensor([time.perf_counter()], dtype=torch.float64), rank, group=group)


def _ask_for_time(group: dist.ProcessGroup) -> float:
    answer = torch.zeros(1, dtype=torch.float64)
    round_trips = []
    for _ in range(ROUND_TRIPS):
        before_s = time.perf_counter()
        dist.send(answer, 0, group=group)
        dist.recv(answer, 0, group=group)
        after_s = time.perf_counter()
        round_trips.append((after_s - before_s, answer.item() - (before_s + after_s) / 2))
    return min(round_trips)[1]
