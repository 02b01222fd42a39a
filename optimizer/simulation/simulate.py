"""The simulator: plays a plan's rows with predicted times; the judge of the closed formula.

A rank runs its row in order; an action starts when its rank is free and its messages have come. Between an
ordered pair of ranks one message travels at a time, in the order in which they were made; different pairs and
the two directions do not disturb each other. After their last actions, the ranks that share parameters sum
their gradients together; then each updates its parameters.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from stagewright.cluster import Cluster
from stagewright.flushless import Update
from stagewright.optimizer.costs.cost import Overlap, transfer_ms
from stagewright.plan import Plan
from stagewright.program import Message, order_with_updates
from stagewright.schedule import Action, Edge, Pipeline, Schedule

from .windows import STEADY_WINDOWS, played, steady_part


@dataclass(frozen=True, slots=True)
class Event:
    """Something that takes a while."""

    what: Action | Message | Literal["reduce", "update"]
    start_ms: float
    end_ms: float


@dataclass(frozen=True)
class Timeline:
    """One predicted step, or without flush several."""

    ranks: tuple[tuple[Event, ...], ...]
    """Per rank, what it computes, in order, with gradient sum and update at the end."""
    messages: tuple[Event, ...]
    steady_ms: tuple[float, float] | None = None
    """Without flush: start and end of the steady windows, of which there are STEADY_WINDOWS."""

    @cached_property
    def end_ms(self) -> float:
        """When everything is done."""
        return max(event.end_ms for events in self.ranks for event in events)

    @cached_property
    def step_ms(self) -> float:
        """One step; without flush, the mean time from update to update in the steady windows."""
        if self.steady_ms is None:
            return self.end_ms
        return (self.steady_ms[1] - self.steady_ms[0]) / STEADY_WINDOWS

    def idle_share(self, rank: int) -> float:
        """Return the part of the step, or of the steady windows, in which a rank does nothing."""
        first_ms, last_ms = self.steady_ms or (0.0, self.end_ms)
        busy_ms = sum(
            max(0.0, min(event.end_ms, last_ms) - max(event.start_ms, first_ms))
            for event in self.ranks[rank]
        )
        return 1 - busy_ms / (last_ms - first_ms) if last_ms > first_ms else 0.0


def simulate(
    plan: Plan,
    cluster: Cluster,
    sharing: Sequence[Sequence[int]],
    overlap: Overlap = "full",
    rows: Schedule | None = None,
) -> Timeline:
    """Return the timeline of one step, without flush of several.

    Args:
        sharing: for each stage the stages that share parameters with it, itself included
            (borders.stages_that_share_parameters).
        overlap: "full": messages travel while ranks compute; "none": the rank of the later stage of a
            border computes nothing while that border's messages travel.
        rows: one step of another schedule than the plan's, with flush.

    Raises:
        InputError: the rows contradict one another (`stagewright.program.check`).
    """
    return _Play(plan, cluster, overlap, rows).run(sharing)


class _Channel:
    """The messages of one edge in one direction."""

    def __init__(self, pipeline: Pipeline, edge: Edge, *, forward: bool) -> None:
        self.edge, self.forward = edge, forward
        ends = (edge.source, edge.target) if forward else (edge.target, edge.source)
        self.senders, self.receivers = (pipeline.routes[stage] for stage in ends)
        """Their ranks, by micro-batch."""
        self.arrival_ms = [math.nan] * pipeline.num_microbatches
        self.message_ms: dict[tuple[str, str], float] = {}
        """By the servers of sender and receiver."""


class _Play:
    """The state of one simulation."""

    def __init__(
        self, plan: Plan, cluster: Cluster, overlap: Overlap, rows: Schedule | None
    ) -> None:
        self.plan, self.cluster, self.overlap = plan, cluster, overlap
        self.pipeline, self.rows = (plan.pipeline(), rows) if rows else played(plan)
        self.borders = {(b.source, b.target): b for b in plan.borders}
        replicas = [(s, r) for s, stage in enumerate(plan.stages) for r in stage.replicas]
        self.replicas = {(s, replica.rank): replica for s, replica in replicas}
        self.server = {replica.rank: replica.server for _, replica in replicas}
        self.free_ms = dict.fromkeys(self.pipeline.ranks, 0.0)
        self.link_free_ms: dict[tuple[int, int], float] = defaultdict(float)
        values = {edge: _Channel(self.pipeline, edge, forward=True) for edge in self.pipeline.edges}
        gradients = {
            edge: _Channel(self.pipeline, edge, forward=False)
            for edge in self.pipeline.edges
            if edge.carries_gradient
        }
        sources, targets = self.pipeline.sources, self.pipeline.targets
        self.incoming = {
            "F": [[values[edge] for edge in edges] for edges in sources],
            "B": [[gradients[edge] for edge in edges if edge in gradients] for edges in targets],
        }
        self.outgoing = {
            "F": [[values[edge] for edge in edges] for edges in targets],
            "B": [[gradients[edge] for edge in edges if edge in gradients] for edges in sources],
        }
        self.events: dict[int, list[Event]] = {rank: [] for rank in self.pipeline.ranks}
        self.messages: list[Event] = []
        updates, size = self.pipeline.updates, self.pipeline.num_microbatches
        self.closed_ms = [0.0] * (size // updates.window if updates else 0)
        """By window of a run without flush: when its last update ended."""

    def run(self, sharing: Sequence[Sequence[int]]) -> Timeline:
        forward_only = self.plan.is_inference
        for item in order_with_updates(self.pipeline, self.rows, forward_only=forward_only):
            if isinstance(item, Update):
                self._close(item)
            else:
                self._play(item)
        if not self.closed_ms:
            self._finish(sharing)
        return Timeline(
            ranks=tuple(tuple(self.events[rank]) for rank in sorted(self.events)),
            messages=tuple(self.messages),
            steady_ms=steady_part(self.plan, self.closed_ms) if self.closed_ms else None,
        )

    def _play(self, action: Action) -> None:
        stage, microbatch = action.stage, action.microbatch
        rank = self.pipeline.routes[stage][microbatch]
        duration_ms = self.replicas[stage, rank].predicted.action_ms(action.kind)
        incoming, outgoing = self._channels(action)
        if self.overlap == "none":
            own = incoming if action.kind == "F" else outgoing
            duration_ms += sum([self._message_ms(channel, microbatch) for channel in own])
        start_ms = self.free_ms[rank]
        for channel in incoming:
            start_ms = max(start_ms, channel.arrival_ms[microbatch])
        end_ms = start_ms + duration_ms
        self.free_ms[rank] = end_ms
        self.events[rank].append(Event(action, start_ms, end_ms))
        for channel in outgoing:
            channel.arrival_ms[microbatch] = self._travel(channel, microbatch, end_ms)

    def _channels(self, action: Action) -> tuple[Sequence[_Channel], Sequence[_Channel]]:
        """Return where an action's messages come from, and where it sends some."""
        if action.kind == "W":
            return (), ()
        kind = "F" if action.kind == "F" else "B"
        return self.incoming[kind][action.stage], self.outgoing[kind][action.stage]

    def _travel(self, channel: _Channel, microbatch: int, made_ms: float) -> float:
        """Return when a message has come; without overlap its time is within the actions."""
        pair = sender, receiver = channel.senders[microbatch], channel.receivers[microbatch]
        if sender == receiver or self.overlap == "none":
            return made_ms
        start_ms = max(made_ms, self.link_free_ms[pair])
        end_ms = start_ms + self._message_ms(channel, microbatch)
        self.link_free_ms[pair] = end_ms
        message = Message(channel.edge, microbatch, channel.forward, sender, receiver)
        self.messages.append(Event(message, start_ms, end_ms))
        return end_ms

    def _message_ms(self, channel: _Channel, microbatch: int) -> float:
        sender, receiver = channel.senders[microbatch], channel.receivers[microbatch]
        if sender == receiver:
            return 0.0
        servers = self.server[sender], self.server[receiver]
        if servers not in channel.message_ms:
            border = self.borders[channel.edge.source, channel.edge.target]
            num_bytes = border.forward_bytes if channel.forward else border.backward_bytes
            link = self.cluster.link_between(*servers)
            size = self.plan.microbatch_size
            channel.message_ms[servers] = float(transfer_ms(num_bytes(size), [link]))
        return channel.message_ms[servers]

    def _finish(self, sharing: Sequence[Sequence[int]]) -> None:
        """Add gradient sums, each starting when its last rank is done, and updates."""
        ready_ms = dict(self.free_ms)
        for stage, others in enumerate(sharing):
            group = {r.rank for other in others for r in self.plan.stages[other].replicas}
            self._update(stage, max(ready_ms[rank] for rank in group))

    def _update(self, stage: int, start_ms: float) -> float:
        """Add a stage's gradient sum, from start_ms on, and its update; return when it has ended."""
        ended_ms = start_ms
        for replica in self.plan.stages[stage].replicas:
            now_ms = max(start_ms, self.free_ms[replica.rank])
            predicted = replica.predicted
            if predicted.reduce_ms > 0:
                reduced_ms = now_ms + predicted.reduce_ms
                self.events[replica.rank].append(Event("reduce", now_ms, reduced_ms))
                now_ms = reduced_ms
            if predicted.update_ms > 0:
                updated_ms = now_ms + predicted.update_ms
                self.events[replica.rank].append(Event("update", now_ms, updated_ms))
                now_ms = updated_ms
            self.free_ms[replica.rank] = now_ms
            ended_ms = max(ended_ms, now_ms)
        return ended_ms

    def _close(self, update: Update) -> None:
        """Add an update without flush, when the last replica of its stage has come."""
        ranks = [replica.rank for replica in self.plan.stages[update.stage].replicas]
        ended_ms = self._update(update.stage, max(self.free_ms[rank] for rank in ranks))
        self.closed_ms[update.window] = max(self.closed_ms[update.window], ended_ms)
