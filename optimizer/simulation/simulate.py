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
from stagewright.optimizer.costs.cost import Overlap, transfer_ms
from stagewright.plan import Plan
from stagewright.program import Message, check
from stagewright.schedule import Action, Edge, Pipeline


@dataclass(frozen=True, slots=True)
class Event:
    """Something that takes a while."""

    what: Action | Message | Literal["reduce", "update"]
    start_ms: float
    end_ms: float


@dataclass(frozen=True)
class Timeline:
    """One predicted step."""

    ranks: tuple[tuple[Event, ...], ...]
    """Per rank, what it computes, in order, with gradient sum and update at the end."""
    messages: tuple[Event, ...]

    @cached_property
    def step_ms(self) -> float:
        return max(event.end_ms for events in self.ranks for event in events)

    def idle_share(self, rank: int) -> float:
        """Return the part of the step in which a rank neither computes nor sums gradients."""
        busy_ms = sum(event.end_ms - event.start_ms for event in self.ranks[rank])
        return 1 - busy_ms / self.step_ms if self.step_ms else 0.0


def simulate(
    plan: Plan, cluster: Cluster, sharing: Sequence[Sequence[int]], overlap: Overlap = "full"
) -> Timeline:
    """Return the timeline of one step.

    Args:
        sharing: for each stage the stages that share parameters with it, itself included
            (borders.stages_that_share_parameters).
        overlap: "full": messages travel while ranks compute; "none": the rank of the later stage of a
            border computes nothing while that border's messages travel.
    """
    return _Play(plan, cluster, overlap).run(sharing)


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

    def __init__(self, plan: Plan, cluster: Cluster, overlap: Overlap) -> None:
        self.plan, self.cluster, self.overlap = plan, cluster, overlap
        self.pipeline = plan.pipeline()
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

    def run(self, sharing: Sequence[Sequence[int]]) -> Timeline:
        for action in check(self.pipeline, self.plan.rows, forward_only=self.plan.is_inference):
            self._play(action)
        self._finish(sharing)
        return Timeline(
            ranks=tuple(tuple(self.events[rank]) for rank in sorted(self.events)),
            messages=tuple(self.messages),
        )

    def _play(self, action: Action) -> None:
        stage, microbatch = action.stage, action.microbatch
        rank = self.pipeline.routes[stage][microbatch]
        predicted = self.replicas[stage, rank].predicted
        incoming, outgoing = self._channels(action)
        duration_ms = predicted.forward_ms if action.kind == "F" else predicted.backward_ms
        if (
            action.kind in "IW"
        ):  # assumed: a product of matrices needs as much for each of its factors
            duration_ms /= 2
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
            start_ms = max(ready_ms[rank] for rank in group)
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
