"""What every possible stage needs at least to keep its load within a threshold, its devices of any types.

A replica of type t that keeps a load of at most T is dealt at most n_t micro-batches: as many as it computes
in what gradient sum and update leave of T, and as its memory holds with the replicas behind it. So a stage of
r_t replicas of each type has sum of r_t n_t >= M. Of what depends on the other replicas (gradient sum, units
in flight, links) the least is taken that any stage of as many replicas has.
"""

from dataclasses import dataclass

import numpy as np

from stagewright.optimizer.branching.cuts import BoolArray
from stagewright.optimizer.costs.cost import FloatArray, IntArray
from stagewright.optimizer.costs.tables import StageTables
from stagewright.optimizer.problem import Problem
from stagewright.optimizer.solvers.labels.arrays import Costs
from stagewright.optimizer.solvers.labels.chain import Chain

SLACK = 1 + 1e-12
"""Loads within a threshold up to rounding are within it."""
ROUNDS = 4
"""More replicas sum gradients longer, which asks for more replicas; each round is a valid bound."""
NO_WAY = 2**40


@dataclass(frozen=True)
class Mixing:
    """A problem's costs with what stages of several types need besides."""

    chain: Chain
    """With costs at most those of any placement on the servers."""
    most_together: int
    """Replicas of several types that one server has at most; 0: every server has one type."""
    is_one_server: bool
    mixable: BoolArray
    """(L + 1, L + 1), [last, first]: whether the user lets a stage have several types."""

    @property
    def near_mixed(self) -> int:
        """Stages of several types on more replicas have their messages across servers."""
        return self.chain.num_devices if self.is_one_server else self.most_together - 1

    @property
    def num_variants(self) -> int:
        """1, or 2 if stages may run forward again."""
        return len(self.chain.costs.type_of) // self.chain.num_types


def mixing_of(tables: StageTables, chain: Chain) -> Mixing:
    """Return a problem's costs for stages of several types."""
    mixable = tables.allowed_stages(frozenset(chain.types)).T
    is_one_server = len(tables.problem.all_servers) == 1
    together = _most_together(tables.problem)
    return Mixing(chain, together, is_one_server, np.ascontiguousarray(mixable))


def _most_together(problem: Problem) -> int:
    most = 0
    for server in sorted(problem.all_servers):
        own = [group for group in problem.groups if group.server == server]
        if len({group.device_type for group in own}) > 1:
            most = max(most, sum(len(group.slots) for group in own))
    return most


@dataclass(frozen=True)
class Needs:
    """What stages need under one threshold; arrays [..., last, first]."""

    threshold_ms: float
    replicas: IntArray
    """(V, L + 1, L + 1) of one type; 0: there is no such stage."""
    time_ms: FloatArray
    """(V, L + 1, L + 1) one micro-batch on them, with its messages."""
    dealt: IntArray
    """(G, K, K, L + 1, L + 1) the most micro-batches of a replica in a stage of several types; 0: none.

    By variant (1: runs forward again), slowest type and type.
    """
    mixed_ms: FloatArray
    """(G, K, L + 1, L + 1) one micro-batch on the slowest type; throughput, first stage: on the fastest."""


def find_needs(mixing: Mixing, threshold_ms: float) -> Needs:
    """Return what stages with a load within a threshold need."""
    costs, kinds = mixing.chain.costs, mixing.chain.num_types
    size, variants = costs.num_cuts, mixing.num_variants
    shape = (size + 1, size + 1)
    needs = Needs(
        threshold_ms,
        np.zeros((len(costs.type_of), *shape), dtype=np.int64),
        np.zeros((len(costs.type_of), *shape)),
        np.zeros((variants, kinds, kinds, *shape), dtype=np.int64),
        np.zeros((variants, kinds, *shape)),
    )
    behind = np.full(size + 1, NO_WAY)
    behind[size] = 0
    """Least replicas behind each cut."""
    for last in range(size, 0, -1):
        if behind[last] >= NO_WAY:
            continue
        row = _Row(mixing, threshold_ms, last, int(behind[last]))
        for kind in range(len(costs.type_of)):
            found = row.of_one_type(kind)
            needs.replicas[kind, last, :last] = found.replicas
            needs.time_ms[kind, last, :last] = found.time_ms
            behind[:last] = np.minimum(behind[:last], _after(behind[last], found.replicas))
        for variant in range(variants):
            for slowest in range(kinds):
                found = row.of_several(variant, slowest)
                needs.dealt[variant, slowest, :, last, :last] = found.dealt
                needs.mixed_ms[variant, slowest, last, :last] = found.time_ms
                behind[:last] = np.minimum(behind[:last], _after(behind[last], found.replicas))
    return needs


def _after(behind: int, replicas: IntArray) -> IntArray:
    return np.where(replicas > 0, behind + replicas, NO_WAY)


@dataclass(frozen=True)
class _Found:
    """Of the stages that end at one cut; (last,) each."""

    dealt: IntArray
    """(types, last)"""
    replicas: IntArray
    """At least; 0: no such stage."""
    time_ms: FloatArray


class _Row:
    """The stages that end at one cut."""

    def __init__(self, mixing: Mixing, threshold_ms: float, last: int, behind: int) -> None:
        self.mixing, self.costs = mixing, mixing.chain.costs
        self.threshold_ms, self.last, self.behind = threshold_ms, last, behind

    def of_one_type(self, kind: int) -> _Found:
        costs, most = self.costs, int(self.costs.most[kind])
        limits = (int(costs.near[kind]), int(costs.inside[kind]))
        found = self._search([kind], 0, 1, limits)
        keeps = (found.replicas > 0) & (found.replicas <= most)
        return _Found(found.dealt, np.where(keeps, found.replicas, 0), found.time_ms)

    def of_several(self, variant: int, slowest: int) -> _Found:
        """Return what stages of several types need, whose slowest type is given."""
        kinds, together = self.mixing.chain.num_types, self.mixing.most_together
        everywhere = self.mixing.chain.num_devices
        limits = (self.mixing.near_mixed, together)
        own = list(range(variant * kinds, (variant + 1) * kinds))
        found = self._search(own, slowest, 2, limits)
        keeps = (found.dealt > 0).sum(axis=0) >= 2
        keeps &= self.mixing.mixable[self.last, : self.last]
        keeps &= found.replicas <= min(everywhere, self.costs.num_microbatches)
        keeps &= found.dealt[slowest] > 0
        dealt = np.where(keeps, found.dealt, 0)
        return _Found(dealt, np.where(keeps, found.replicas, 0), found.time_ms)

    def _search(
        self, kinds: list[int], slowest: int, least: int, limits: tuple[int, int]
    ) -> _Found:
        """Return what stages on some kinds need.

        Args:
            least: replicas that they have anyway.
            limits: of more replicas messages, and gradient sums, go across servers.
        """
        costs, at = self.costs, (self.last, slice(0, self.last))
        num = costs.num_microbatches
        fits = costs.fits[(kinds, *at)]
        replicas = np.full(self.last, least, dtype=np.int64)
        for _ in range(ROUNDS):
            far = (replicas > limits[0]).astype(np.int64)
            forward = costs.forward_ms[far, self.last, np.arange(self.last)]
            backward = costs.backward_ms[far, self.last, np.arange(self.last)]
            each = costs.compute_ms[(kinds, *at)]
            if costs.waits:
                each = each + forward + backward
            latency = each[slowest]
            room = self.threshold_ms * SLACK - costs.end_ms[(kinds, *at)]
            room = room - sum_ms(costs, costs.own_bytes[at], replicas, limits[1])
            room = room + (latency if costs.is_step_time else 0.0)
            dealt = _whole(room, each, num)
            if not costs.waits:
                messages = _whole(
                    np.full_like(forward, self.threshold_ms * SLACK),
                    np.maximum(forward, backward),
                    num,
                )
                dealt = np.minimum(dealt, messages + int(costs.is_step_time))
            dealt = np.minimum(dealt, self._held(fits, replicas))
            dealt = np.where(fits > 0, np.clip(dealt, 0, num + 1 - least), 0)
            dealt = np.where(each <= latency * SLACK, dealt, 0)
            top = dealt.max(axis=0)
            replicas = np.maximum(least, -(-num // np.maximum(top, 1)))
        incoming = np.zeros(self.last) if costs.waits else forward + backward
        time_ms = latency + incoming
        if not costs.is_step_time:
            time_ms[0] = np.where(dealt[:, 0] > 0, each[:, 0], latency[0]).min() + incoming[0]
        return _Found(dealt, np.where(top > 0, replicas, 0), time_ms)

    def _held(self, fits: IntArray, replicas: IntArray) -> IntArray:
        """Return the most micro-batches of a replica whose units in flight fit, among some replicas."""
        if self.costs.holds_all:
            return fits
        share: IntArray = fits * self.costs.num_microbatches // (self.behind + replicas)
        return np.maximum(fits, share)


def _whole(room: FloatArray, each: FloatArray, most: int) -> IntArray:
    """Return how many times something goes into the room there is, up to rounding and at most so often."""
    ratio = np.where(each > 0, room / np.where(each > 0, each, 1.0), np.where(room >= 0, most, -1))
    return np.floor(np.clip(ratio * SLACK, -1, most)).astype(np.int64)


def sum_ms(
    costs: Costs, num_bytes: FloatArray, replicas: IntArray, most_inside: IntArray | int
) -> FloatArray:
    """Return the time of gradient sums over some replicas."""
    level = (replicas > most_inside).astype(np.int64)
    each = [
        costs.sum_latency_ms[level, link]
        + num_bytes / replicas * costs.sum_ms_per_byte[level, link]
        for link in range(2)
    ]
    return np.where(num_bytes > 0, 2 * (replicas - 1) * np.maximum(*each), 0.0)
