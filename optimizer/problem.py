"""What is to be planned: the measured inputs with the user's choices."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stagewright.cluster import Link, Slot
from stagewright.document import InputError
from stagewright.graph import LayerCost, LayerNode

from .borders import chain_of, crossing_bytes, has_branches, opaque_groups
from .branching.cuts import (
    Cutting,
    FloatArray,
    GraphCuts,
    close_to,
    cuts_in_order,
    cuts_of_orders,
    every_cut,
)
from .branching.sums import StageSums
from .branching.units import Units, units_of
from .constraints import NO_CONSTRAINTS, Constraints, Fixed
from .costs.cost import Objective, Overlap, state_copies
from .costs.intervals import Holdings, Times, Traffic, holdings_of, times_of, traffic_of
from .flushless import constraints_of
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
    """The number of the cut before it (Problem.cuts)."""
    last: int
    """The number of the cut behind it."""
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
    cutting: Cutting = "order"
    """Which of the graph's cuts plans may use."""
    kept_cuts: tuple[str, ...] = ()
    """Layers before which the graph's order can be cut even if a long one is thinned."""
    around: tuple[int, ...] = ()
    """The stage of each layer of the chain in a plan, to thin many cuts less close to its own; or nothing."""

    @property
    def is_inference(self) -> bool:
        """Whether nothing is trained: no loss, no backward, no gradients, no update."""
        return self.objective == "latency"

    @cached_property
    def chain(self) -> tuple[LayerNode, ...]:
        """The layers that compute, in the graph's order."""
        return chain_of(self.inputs.model)

    @cached_property
    def position(self) -> dict[str, int]:
        """Of each layer of the chain, by name."""
        return {layer.name: index for index, layer in enumerate(self.chain)}

    @cached_property
    def cuts(self) -> GraphCuts:
        """Where plans may cut. Too many of `every` are contracted to those of `orders`."""
        branches = has_branches(self.inputs.model)
        if branches and self.cutting != "order":
            units, size = self.units, len(self.chain)
            found = every_cut(units, size) if self.cutting == "every" else None
            if found is not None and not self.around:
                return found
            work_ms = np.array([self._work_ms[list(layers)].sum() for layers in units.layers])
            around = [self.around[layers[0]] for layers in units.layers] if self.around else ()
            return cuts_of_orders(units, work_ms, size, around)
        crossing = crossing_bytes(self.inputs.model, self.chain, self.microbatch_size)
        kept = [*(self.position[name] for name in self.kept_cuts), *close_to(self.around)]
        return cuts_in_order(crossing, self._work_ms, kept, branches=branches)

    @cached_property
    def sums(self) -> StageSums:
        return StageSums(self.cuts)

    @cached_property
    def traffic(self) -> Traffic:
        return traffic_of(self)

    @cached_property
    def holdings(self) -> Holdings:
        return holdings_of(self)

    @cached_property
    def times(self) -> dict[str, Times]:
        """By device type."""
        return {name: times_of(self, name, self.holdings) for name in self.inputs.graphs}

    @cached_property
    def units(self) -> Units:
        graphs, size = self.inputs.graphs.values(), self.microbatch_size
        with_maps = {name for g in graphs for shared in g.shared_maps for name in shared.layers}

        def is_free(layer: LayerNode) -> bool:
            if layer.name in with_maps:
                return False
            costs = [graph.by_name[layer.name].cost_at(size) for graph in graphs]
            times = (c.forward_ms + c.backward_ms for c in costs)
            return not any(times) and all(c.saved_bytes == 0 and not c.working_bytes for c in costs)

        return units_of(self.inputs.model, size, is_free)

    @cached_property
    def _work_ms(self) -> FloatArray:
        """(L,) forward and backward of each layer, summed over the device types."""
        graphs = self.inputs.graphs.values()
        costs = [
            [g.by_name[s.name].cost_at(self.microbatch_size) for g in graphs] for s in self.chain
        ]
        return np.array([sum(c.forward_ms + c.backward_ms for c in own) for own in costs])

    @cached_property
    def opaque_groups(self) -> tuple[tuple[str, ...], ...]:
        """Layers that must share a stage: each that returns what cannot be sent, with its takers."""
        return tuple(opaque_groups(self.inputs.model))

    @cached_property
    def fixed(self) -> Fixed | None:
        """Which layers must be where: by the user, and because of values that cannot be sent."""
        user = self.constraints.fixed
        if not self.opaque_groups:
            return user
        user = Fixed() if user is None else user
        return user.replace(together=(*user.together, *self.opaque_groups))

    @cached_property
    def is_fixed_by_user(self) -> bool:
        """Whether layers must be somewhere not only because of the schedule or of what cannot be sent."""
        own = constraints_of(self.schedule, NO_CONSTRAINTS, self.inputs.model)
        return self.constraints.fixed != own.fixed

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
        cost = self.loss_cost(device_type)
        return (0.0, 0.0) if cost is None else (cost.forward_ms, cost.backward_ms)

    def loss_cost(self, device_type: str) -> LayerCost | None:
        """Return what the task's loss costs; None if it has none, and in inference.

        Raises:
            InputError: it was measured, but not at this micro-batch size.
        """
        graph = self.inputs.graphs[device_type]
        if self.is_inference:
            return None
        for cost in graph.loss:
            if cost.batch_size == self.microbatch_size:
                return cost
        if graph.loss:
            raise InputError(
                f"{self.inputs.graph_paths[device_type]}: the loss was not measured at micro-batch "
                f"{self.microbatch_size}; profile again with -b {self.microbatch_size}"
            )
        return None

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

    def working_bytes(self, layer: LayerNode) -> int:
        """Return what a layer of a device type's graph holds at most beyond what is saved.

        Not counted, so 0, in graphs that were made before it was measured.
        """
        return layer.cost_at(self.microbatch_size).working_bytes or 0

    def loss_working_bytes(self, device_type: str) -> int:
        """Return the same for the loss."""
        graph = self.inputs.graphs[device_type]
        found = [c.working_bytes for c in graph.loss if c.batch_size == self.microbatch_size]
        return (found[0] or 0) if found else 0

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
