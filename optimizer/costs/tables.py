"""Costs of every possible stage: pairs of nested cuts on sets of devices, as arrays for the solvers."""

import itertools
from dataclasses import dataclass
from functools import cached_property
from types import EllipsisType

import numpy as np
from numpy.typing import NDArray

from stagewright.optimizer.problem import Problem, StageChoice

from .cost import (
    FloatArray,
    IntArray,
    compute_load_ms,
    deal_counts,
    gradient_sum_ms,
    link_load_ms,
    memory_bytes,
    message_bytes,
    transfer_ms,
    unit_bytes,
    units_held,
    versions_held,
    window_rounds,
)

Devices = tuple[int, ...]
"""How many devices of each group."""


@dataclass(frozen=True)
class StageTable:
    """All pairs of cuts as a stage on some devices behind some stage; arrays (n + 1, n + 1)."""

    latency_ms: FloatArray
    """One micro-batch on the slowest replica."""
    incoming_ms: FloatArray
    """Its messages from the stages before and the gradients back to them, if not within latency_ms."""
    load_ms: FloatArray
    replica_ms: FloatArray
    """(R, n + 1, n + 1): one micro-batch on each replica, in the order of the groups."""
    counts: IntArray
    """(R, n + 1, n + 1): micro-batches dealt to each replica, in the order of the groups."""


class StageTables:
    """Stage costs of one problem, made when they are asked for."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.size = len(problem.cuts) - 1
        """n, the number of the last cut; that of the first is 0."""
        self.places = problem.places
        self.traffic, self.holdings, self.times = problem.traffic, problem.holdings, problem.times
        self._tables: dict[tuple[Devices, int, bool], StageTable] = {}
        self._windows: dict[tuple[Devices, int, int, bool], tuple[FloatArray, FloatArray]] = {}
        self._allowed: dict[frozenset[str], NDArray[np.bool_]] = {}
        self._fits: dict[tuple[Devices, int, int, bool], NDArray[np.bool_]] = {}

    @cached_property
    def device_sets(self) -> tuple[Devices, ...]:
        """Every set of devices that a stage can have, not more than there are micro-batches."""
        ranges = [range(len(group.slots) + 1) for group in self.problem.groups]
        sets = (d for d in itertools.product(*ranges) if sum(d) > 0)
        most = 1 if self.problem.constraints.straight else self.problem.num_microbatches
        return tuple(d for d in sets if sum(d) <= most)

    @property
    def stage_kinds(self) -> tuple[tuple[Devices, bool], ...]:
        """Every set of devices without, and if the user allows it with, running forward again."""
        problem = self.problem
        allowed = problem.constraints.allow_recompute and not problem.is_inference
        kinds = (False, True) if allowed else (False,)
        return tuple(itertools.product(self.device_sets, kinds))

    def allowed_stages(self, device_types: frozenset[str]) -> NDArray[np.bool_]:
        """Return (n + 1, n + 1) which pairs of cuts can be a stage on devices of some types."""
        if device_types not in self._allowed:
            fixed, cuts = self.problem.fixed, self.problem.cuts
            allowed = cuts.nested
            if fixed is not None:
                allowed = allowed & fixed.allowed_stages(
                    self.problem.sums, self.problem.position, sorted(device_types)
                )
            self._allowed[device_types] = allowed
        return self._allowed[device_types]

    def types_of(self, devices: Devices) -> list[str]:
        """Return the device type of each replica."""
        pairs = zip(devices, self.problem.groups, strict=True)
        return [group.device_type for count, group in pairs for _ in range(count)]

    def servers_of(self, devices: Devices) -> frozenset[str]:
        pairs = zip(devices, self.problem.groups, strict=True)
        return frozenset(group.server for count, group in pairs if count)

    def place_of(self, devices: Devices) -> int:
        """Return the index of the place of a stage with some devices."""
        return self.problem.place_of(self.servers_of(devices))

    def table(self, devices: Devices, place_before: int, recompute: bool = False) -> StageTable:
        """Return the costs of stages on some devices whose predecessor is at a place."""
        key = (devices, place_before, recompute)
        if key not in self._tables:
            self._tables[key] = self._make(devices, place_before, recompute)
        return self._tables[key]

    def stage(self, choice: StageChoice, place_before: int) -> StageTable:
        """Return the costs of one stage, with arrays of no (replicas: one) dimension."""
        at = (choice.first, choice.last)
        return self._make(choice.devices, place_before, choice.recompute, at)

    def _make(
        self,
        devices: Devices,
        place_before: int,
        recompute: bool,
        at: tuple[int, int] | EllipsisType = ...,
    ) -> StageTable:
        problem, types = self.problem, self.types_of(devices)
        servers = self.servers_of(devices)
        links = problem.links_across(self.places[place_before], servers)
        forward_ms = transfer_ms(self.traffic.received[at], links)
        backward_ms = transfer_ms(self.traffic.received_gradient[at], links)
        times = [self.times[device_type] for device_type in types]
        forwards = 2.0 if recompute else 1.0
        replica_ms = np.stack([forwards * t.forward_ms[at] + t.backward_ms[at] for t in times])
        if problem.overlap == "none":
            replica_ms = replica_ms + forward_ms + backward_ms
        counts = deal_counts(replica_ms, problem.num_microbatches)
        latency_ms = replica_ms.max(axis=0)
        update_ms = np.max([self.times[t].update_ms[at] for t in dict.fromkeys(types)], axis=0)
        end_ms = self._reduce_ms(devices, at) + update_ms
        busy_ms = (counts * replica_ms).max(axis=0)
        load_ms = np.asarray(compute_load_ms(problem.objective, latency_ms, busy_ms, end_ms))
        incoming_ms = forward_ms + backward_ms
        if problem.overlap == "none":
            incoming_ms = np.zeros_like(incoming_ms)
        else:
            most = counts.max(axis=0)
            link_ms = link_load_ms(problem.objective, most, np.maximum(forward_ms, backward_ms))
            load_ms = np.maximum(load_ms, link_ms)
        return StageTable(latency_ms, incoming_ms, load_ms, replica_ms, counts)

    def _reduce_ms(self, devices: Devices, at: tuple[int, int] | EllipsisType = ...) -> FloatArray:
        """Return the gradient sum: own parameters over the replicas, shared ones over the whole cluster."""
        inside = self.problem.links_inside(self.servers_of(devices))
        own_bytes = self.holdings.trained[at] - self.holdings.shared[at]
        return gradient_sum_ms(own_bytes, sum(devices), inside) + self.shared_sum_ms[at]

    @cached_property
    def shared_sum_ms(self) -> FloatArray:
        """(n + 1, n + 1) the gradient sum of parameters that other stages may hold, over all devices."""
        everywhere = self.problem.links_inside(self.problem.all_servers)
        return gradient_sum_ms(self.holdings.shared, self.problem.num_devices, everywhere)

    def fits(
        self, devices: Devices, place_before: int, replicas_behind: int, recompute: bool = False
    ) -> NDArray[np.bool_]:
        """Return which pairs of cuts fit into the memory of all of some devices.

        Args:
            replicas_behind: the replicas of this stage and of all later ones.
        """
        if not self.problem.count_memory:
            return np.ones((self.size + 1, self.size + 1), dtype=bool)
        # Without overlap the micro-batches are dealt by speeds that depend on the place before.
        place = place_before if self.problem.overlap == "none" else 0
        key = (devices, place, replicas_behind, recompute)
        if key not in self._fits:
            self._fits[key] = self._make_fits(devices, place, replicas_behind, recompute)
        return self._fits[key]

    def _make_fits(
        self, devices: Devices, place_before: int, replicas_behind: int, recompute: bool
    ) -> NDArray[np.bool_]:
        problem = self.problem
        units = self._units(devices, place_before, replicas_behind, recompute)
        counts = self.table(devices, place_before, recompute).counts
        versions = versions_held(problem.schedule, units, counts)
        fits = np.ones((self.size + 1, self.size + 1), dtype=bool)
        for replica, device_type in enumerate(self.types_of(devices)):
            own = units[replica].astype(float)
            held = self.memory(device_type, own, ..., recompute, versions[replica])
            fits &= held <= problem.memory_limit(device_type)
        return fits

    def window(
        self, devices: Devices, place_before: int, replicas_behind: int, recompute: bool = False
    ) -> tuple[FloatArray, FloatArray]:
        """Return slope and intercept of each replica's window load (cost.window_rounds)."""
        key = (devices, place_before, replicas_behind, recompute)
        if key not in self._windows:
            table = self.table(devices, place_before, recompute)
            units = self._units(devices, place_before, replicas_behind, recompute)
            self._windows[key] = window_rounds(
                self.problem.objective, table.replica_ms, table.counts, units
            )
        return self._windows[key]

    def _units(
        self, devices: Devices, place_before: int, replicas_behind: int, recompute: bool
    ) -> IntArray:
        counts = self.table(devices, place_before, recompute).counts
        problem = self.problem
        return units_held(problem.schedule, counts, problem.num_microbatches, replicas_behind)

    def memory(
        self,
        device_type: str,
        units: FloatArray,
        at: tuple[int, int] | EllipsisType = ...,
        recompute: bool = False,
        versions: IntArray | int = 1,
    ) -> FloatArray:
        """Return the bytes of every pair of cuts, or one, on a device type with some units in flight.

        versions is how many of its weights a rank holds: one with flush.
        """
        traffic, holdings = self.traffic, self.holdings
        times = self.times[device_type]
        taken_bytes = traffic.received[at] + traffic.loaded[at]
        kept_bytes, rerun_bytes = unit_bytes(
            taken_bytes, times.saved[at], traffic.sent[at], recompute
        )
        return np.asarray(
            memory_bytes(
                parameter_bytes=holdings.parameters[at],
                trained_bytes=holdings.trained[at],
                buffer_bytes=holdings.buffers[at],
                unit_bytes=kept_bytes,
                rerun_bytes=rerun_bytes,
                message_bytes=message_bytes(
                    self.problem.schedule,
                    traffic.received[at],
                    traffic.received_gradient[at],
                    traffic.sent_gradient[at],
                ),
                working_bytes=times.working[at],
                copies=self.problem.copies,
                units=units,
                versions=np.asarray(versions, dtype=np.float64),
            )
        )
