"""What is to be planned: the measured inputs with the user's choices."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from stagewright.cluster import Link, Slot
from stagewright.document import InputError
from stagewright.graph import LayerGraph, LayerNode, unique_parameters

from .borders import chain_of
from .constraints import NO_CONSTRAINTS, Constraints
from .costs.cost import Objective, Overlap, state_copies
from .load import Inputs

MS_PER_HOUR = 3.6e6
MOST_SERVERS_TOLD_APART = 4
"""In which combination of servers a stage is: 15 places for 4 servers."""


@dataclass(frozen=True)
class Group:
    """The devices of one type in one server: interchangeable."""

    server: str
    device_type: str
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class StageChoice:
    """One stage of a plan as the solvers see it."""

    first: int
    """Position in the chain."""
    last: int
    """Behind its last layer."""
    devices: tuple[int, ...]
    """How many of each group."""
    recompute: bool = False
    """Whether the backward runs forward again."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Inputs and choices; everything that the cost of a plan depends on, but the plan."""

    inputs: Inputs
    microbatch_size: int
    num_microbatches: int
    schedule: str = "1f1b"
    objective: Objective = "step-time"
    optimizer: str = "sgd-momentum"
    overlap: Overlap = "full"
    """Whether messages travel while their ranks compute; "none": the later stage of a border waits."""
    count_memory: bool = True
    count_update: bool = True
    max_stages: int | None = None
    equal_shares: bool = False
    """Replicas of the user's own stages take turns, fast or slow, instead of by speed."""
    constraints: Constraints = NO_CONSTRAINTS

    @property
    def is_inference(self) -> bool:
        """Whether nothing is trained: no loss, no backward, no gradients, no update."""
        return self.objective == "latency"

    @cached_property
    def chain(self) -> tuple[LayerNode, ...]:
        return chain_of(self.inputs.model)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """In the order of their first slots."""
        slots: dict[tuple[str, str], list[Slot]] = {}
        for slot in self.inputs.cluster.slots:
            slots.setdefault((slot.server, slot.device_type), []).append(slot)
        return tuple(Group(server, kind, tuple(own)) for (server, kind), own in slots.items())

    @property
    def num_devices(self) -> int:
        return sum(len(group.slots) for group in self.groups)

    @property
    def copies(self) -> int:
        """Optimizer state per trained parameter, in tensors of its size."""
        return state_copies(self.optimizer)

    def memory_limit(self, device_type: str) -> int:
        return self.inputs.cluster.device_types[device_type].memory_bytes

    def price_per_hour(self, devices: tuple[int, ...]) -> float:
        """Return the price of some devices of each group.

        Raises:
            InputError: a type has none.
        """
        return sum(
            count * self._price(group.device_type)
            for count, group in zip(devices, self.groups, strict=True)
            if count
        )

    def worth_of_ms(self, stages: Sequence[tuple[int, ...]]) -> float:
        """Return what a millisecond of a plan counts: the price per hour of its devices, or 1.

        Args:
            stages: how many devices of each group each of its stages uses.

        Raises:
            InputError: the objective is cost, and a type has no price.
        """
        if self.objective != "cost":
            return 1.0
        return self.price_per_hour(tuple(map(sum, zip(*stages, strict=True))))

    def reported_value(self, time_ms: float, stages: Sequence[tuple[int, ...]]) -> float:
        """Return what a plan of some time is reported as: the time, or the price of 1 000 of them."""
        if self.objective != "cost":
            return time_ms
        return self.worth_of_ms(stages) * time_ms * 1000 / MS_PER_HOUR

    def _price(self, device_type: str) -> float:
        price = self.inputs.cluster.device_types[device_type].price_per_hour
        if price is None:
            raise InputError(
                f"{self.inputs.cluster_path}: device type {device_type!r} has no price_per_hour, which "
                "--objective cost and --budget need; add it"
            )
        return price

    def may_use(self, devices: tuple[int, ...]) -> bool:
        """Return whether a plan may use some devices of each group in all."""
        limits = self.constraints
        if limits.most_devices is not None and sum(devices) > limits.most_devices:
            return False
        budget = limits.budget_per_hour
        return budget is None or self.price_per_hour(devices) <= budget * (1 + 1e-12)

    @property
    def most_load_ms(self) -> float:
        """The largest load that a stage may have: in inference, a period's for every micro-batch."""
        period_ms = self.constraints.period_ms
        return math.inf if period_ms is None else period_ms * self.num_microbatches * (1 + 1e-12)

    def whole_update_ms(self, device_type: str) -> float:
        """Return the measured update of all parameters; 0 if the user asked not to count it.

        Raises:
            InputError: it was not measured.
        """
        if not self.count_update or self.is_inference:
            return 0.0
        whole = self.inputs.graphs[device_type].whole_at(self.microbatch_size)
        if whole is None:
            raise InputError(
                f"{self.inputs.graph_paths[device_type]}: the whole step at micro-batch "
                f"{self.microbatch_size} was not measured, so the time of the update is unknown; profile "
                "again, or plan with --ignore-update"
            )
        return whole.update_ms

    def loss_ms(self, device_type: str) -> tuple[float, float]:
        """Return forward and backward time of the task's loss; (0, 0) if the task has none.

        Raises:
            InputError: it was measured, but not at this micro-batch size.
        """
        graph = self.inputs.graphs[device_type]
        if self.is_inference:
            return 0.0, 0.0
        for cost in graph.loss:
            if cost.batch_size == self.microbatch_size:
                return cost.forward_ms, cost.backward_ms
        if graph.loss:
            raise InputError(
                f"{self.inputs.graph_paths[device_type]}: the loss was not measured at micro-batch "
                f"{self.microbatch_size}; profile again with -b {self.microbatch_size}"
            )
        return 0.0, 0.0

    def loss_saved_bytes(self, device_type: str) -> int:
        """Return what autograd keeps for the loss."""
        graph = self.inputs.graphs[device_type]
        saved = [c.saved_bytes for c in graph.loss if c.batch_size == self.microbatch_size]
        if not saved or self.is_inference:
            return 0
        if saved[0] is None:
            raise self._not_measured(device_type, "the loss")
        return saved[0]

    def saved_bytes(self, device_type: str, layer: LayerNode) -> int:
        """Return what autograd keeps for a layer.

        Raises:
            InputError: it was not measured.
        """
        if self.is_inference:
            return 0
        saved = layer.cost_at(self.microbatch_size).saved_bytes
        if saved is None:
            raise self._not_measured(device_type, f"layer {layer.name!r}")
        return saved

    def _not_measured(self, device_type: str, what: str) -> InputError:
        return InputError(
            f"{self.inputs.graph_paths[device_type]}: saved_bytes of {what} at micro-batch "
            f"{self.microbatch_size} was not measured, so memory cannot be computed; profile again, or "
            "plan with --ignore-memory"
        )

    def links_inside(self, servers: frozenset[str]) -> tuple[Link, ...]:
        """Return the kinds of links that a gradient sum over ranks in some servers uses."""
        return self.links_across(servers, servers)

    def links_across(self, first: frozenset[str], second: frozenset[str]) -> tuple[Link, ...]:
        """Return the kinds of links between ranks in some servers and ranks in others."""
        pairs = itertools.product(sorted(first), sorted(second))
        return tuple(dict.fromkeys(self.inputs.cluster.link_between(a, b) for a, b in pairs))

    @cached_property
    def all_servers(self) -> frozenset[str]:
        return frozenset(group.server for group in self.groups)

    @cached_property
    def places(self) -> tuple[frozenset[str], ...]:
        """Where a stage can be, as the next stage's messages see it: in one server, or in several.

        Several servers are told apart only where a matrix of few servers makes a difference.
        """
        names = list(dict.fromkeys(group.server for group in self.groups))
        single = [frozenset({name}) for name in names]
        if len(names) == 1:
            return tuple(single)
        if not self.inputs.cluster.links.matrix or len(names) > MOST_SERVERS_TOLD_APART:
            return (*single, self.all_servers)
        several = (itertools.combinations(names, n) for n in range(2, len(names) + 1))
        return (*single, *map(frozenset, itertools.chain(*several)))

    def place_of(self, servers: frozenset[str]) -> int:
        """Return the index of the place of a stage on some servers: the last is all servers."""
        return self.places.index(servers) if servers in self.places else len(self.places) - 1


def trained_bytes(graph: LayerGraph) -> int:
    """Return the bytes of all trained parameters, tied ones once; a graph without details trains all."""
    detailed = unique_parameters(graph, graph.layers)
    known = sum(p.spec.bytes_at(1) for p in detailed.values() if p.spec.requires_grad)
    return known + sum(layer.parameter_bytes for layer in graph.layers if not layer.parameters)
