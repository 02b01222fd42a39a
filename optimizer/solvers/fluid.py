"""A lower bound for every cut of a graph: layers are spread over stages like a fluid, in any order.

A stage on r replicas of one type, each of which is dealt at most n micro-batches, keeps a load of at most T
only if the sum over its layers of n' t + e b is at most T, with n' = n - 1 (throughput: n), t forward and
backward, b the trained bytes and e what reducing and updating a byte take. So each of its layers needs
r (n' t + e b) / T of the devices. At any price per device (per byte of memory, per stage) every layer takes
the kind of stage that is cheapest for it, whatever the other layers do; what that costs minus what all there
is would cost bounds the sum of times of plans within T, or says that there are none. Messages, the layers'
order, whole devices and stages, latencies of gradient sums and all units in flight but one are left out.

Source: Lagrangian relaxation, as in labels/prices.py; without order and borders it holds for every ideal.
"""

import heapq
import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from stagewright.certificate import PricedLoads
from stagewright.graph import AttributeOperation
from stagewright.optimizer.costs.cost import FloatArray, IntArray, has_flush
from stagewright.optimizer.costs.intervals import trained_bytes
from stagewright.optimizer.problem import Problem

from .labels.chain import most_in_one_server, replica_steps, sum_links

ROUNDS = 40
"""Of raising prices at one threshold."""
SECTIONS = 16
"""Of the range of a common factor of all prices."""
GOLDEN = (5**0.5 - 1) / 2
MOST_THRESHOLDS = 40
CLOSE = 1e-4
"""Thresholds are told apart until the bound would rise by less than this part."""
ROUNDING = 1e-9
METHOD = "layers spread over stages like a fluid, in any order, without messages"


def every_cut_bound(problem: Problem, value_ms: float, *, mixes_types: bool) -> float:
    """Return what no plan's time is below, whatever its cuts; at most value_ms, in ms (cost: x price/h).

    Args:
        value_ms: of a plan, or any other number above which a bound is of no interest.
        mixes_types: whether a stage may have replicas of several types.

    Raises:
        InputError: something that the bound depends on was not measured.
    """
    return every_cut_proof(problem, value_ms, mixes_types=mixes_types)[0]


def every_cut_proof(
    problem: Problem, value_ms: float, *, mixes_types: bool
) -> tuple[float, list[PricedLoads]]:
    """Return the same with the prices that prove it, if prices do."""
    layers = Layers(problem)
    proof: list[PricedLoads] = []
    if problem.objective == "latency":
        bound = float(layers.forward_ms.min(axis=0).sum())
    elif problem.objective == "cost":
        # A device is paid for all the step, so at least while it computes.
        prices = [problem.price_per_hour(_one(problem, kind)) for kind in layers.types]
        paid = (np.array(prices)[:, None] * layers.time_ms).min(axis=0).sum()
        bound = float(paid) * problem.num_microbatches
    elif mixes_types and len(layers.types) > 1:
        bound = _work_bound(problem, layers)
    else:
        fluid = Fluid(problem, layers)
        bound = fluid.step_bound(value_ms) if fluid.is_flush else fluid.load_bound(value_ms)
        proof = fluid.proof
    return min(bound * (1 - ROUNDING), value_ms), proof


def _one(problem: Problem, device_type: str) -> tuple[int, ...]:
    """Return one device of a type, as devices of each group."""
    kinds = [group.device_type for group in problem.groups]
    return tuple(int(index == kinds.index(device_type)) for index in range(len(kinds)))


class Layers:
    """What each layer takes; the loss is one more."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.types = tuple(dict.fromkeys(group.device_type for group in problem.groups))
        names = [group.device_type for group in problem.groups for _ in group.slots]
        self.counts = np.array([names.count(kind) for kind in self.types])

    @cached_property
    def forward_ms(self) -> FloatArray:
        """(K, L + 1)"""
        return self._costs("forward_ms", 0)

    @cached_property
    def time_ms(self) -> FloatArray:
        """(K, L + 1) forward and backward."""
        return self.forward_ms + self._costs("backward_ms", 1)

    def _costs(self, what: str, part: int) -> FloatArray:
        problem, rows = self.problem, []
        for kind in self.types:
            graph = problem.inputs.graphs[kind]
            costs = [graph.by_name[s.name].cost_at(problem.microbatch_size) for s in problem.chain]
            rows.append([*(getattr(cost, what) for cost in costs), problem.loss_ms(kind)[part]])
        return np.array(rows, dtype=np.float64)

    @cached_property
    def stored_bytes(self) -> FloatArray:
        """(2, L + 1) parameters, and trained ones, that no other layer shares."""
        graph, chain = self.problem.inputs.model, self.problem.chain
        names = graph.canonical_names
        bare = {s.name: s for s in graph.steps if isinstance(s.operation, AttributeOperation)}
        held = [
            {
                names.get(p.name, p.name): p
                for own in (layer, *(bare[name] for name in layer.inputs if name in bare))
                for p in own.parameters
            }
            for layer in chain
        ]
        users = Counter(name for found in held for name in found)
        table = np.zeros((2, len(chain) + 1))
        for index, (layer, found) in enumerate(zip(chain, held, strict=True)):
            own = [p.spec for name, p in found.items() if users[name] == 1]
            plain = 0 if layer.parameters else layer.parameter_bytes
            table[0, index] = plain + sum(spec.bytes_at(1) for spec in own)
            table[1, index] = plain + sum(s.bytes_at(1) for s in own if s.requires_grad)
        return table

    def held_bytes(self, units: FloatArray) -> FloatArray:
        """Return (K, C, L + 1) bytes that each layer takes on a device with some (C,) units in flight."""
        problem = self.problem
        parameters, trained = self.stored_bytes
        static = parameters + (1 + problem.copies) * trained
        saved = np.array(
            [
                [
                    *(problem.saved_bytes(kind, graph.by_name[s.name]) for s in problem.chain),
                    problem.loss_saved_bytes(kind),
                ]
                for kind in self.types
                for graph in [problem.inputs.graphs[kind]]
            ],
            dtype=np.float64,
        )
        held: FloatArray = static + units[None, :, None] * saved[:, None, :]
        return held


def _work_bound(problem: Problem, layers: Layers) -> float:
    """Return the best bound found by pricing the time of device types: all are busy at most for the value."""
    work = layers.time_ms * problem.num_microbatches
    parts = layers.counts / layers.counts.sum()
    best = float(work.min(axis=0).max()) / problem.num_microbatches
    for turn in range(ROUNDS):
        priced = (parts / layers.counts)[:, None] * work
        best = max(best, float(priced.min(axis=0).sum()))
        types = priced.argmin(axis=0)
        chosen = np.take_along_axis(work, types[None, :], axis=0)[0]
        busy = np.bincount(types, chosen, len(parts)) / layers.counts
        parts = parts * np.exp(np.minimum(busy / max(busy.mean(), 1e-300) - 1, 4) / (turn + 1.0))
        parts = parts / parts.sum()
    return best


@dataclass(frozen=True)
class _Kinds:
    """The kinds of stages: a device type with a number of replicas; (C,) each."""

    device_type: IntArray
    replicas: IntArray
    dealt: FloatArray
    """Micro-batches of the busiest replica, less the one that a flush counts elsewhere."""
    units: FloatArray
    """That a replica holds at least."""
    ms_per_byte: FloatArray
    """Reducing and updating."""
    sum_ms: FloatArray
    """(C, L + 1) reducing and updating each layer alone, with latencies."""


class _Table(NamedTuple):
    """What each kind of stage takes for each layer, at one threshold; (C, L + 1) each."""

    own: FloatArray
    """Of the time; infinite where the layer alone is too much."""
    device: FloatArray
    """Of all devices of the type."""
    memory: FloatArray
    """Of all their memory."""
    stage: FloatArray
    """Of all stages."""
    types: IntArray
    num_types: int

    def cheapest(self, prices: FloatArray) -> tuple[IntArray, float]:
        """Return the cheapest kind for each layer, and what all cost more than all there is."""
        fares = self.own + prices[self.types][:, None] * self.device
        memory = prices[self.num_types : -1]
        if memory.any():
            fares += memory[self.types][:, None] * self.memory
        if prices[-1] > 0:
            fares += prices[-1] * self.stage
        return fares.argmin(axis=0), float(fares.min(axis=0).sum() - prices.sum())


class _Proven(NamedTuple):
    """Plans of a largest load above one and at most another number, and what prices prove of them."""

    bound_ms: float
    low_ms: float
    high_ms: float
    prices: tuple[float, ...]


class Fluid:
    """The bound for stages of one device type each."""

    def __init__(self, problem: Problem, layers: Layers) -> None:
        self.problem, self.layers = problem, layers
        self.proof: list[PricedLoads] = []
        """The prices behind the last bound."""
        self.is_flush = has_flush(problem.objective)
        self.kinds = self._kinds()
        of_kind = self.kinds.device_type
        self.time_ms = layers.time_ms[of_kind]
        self.need_ms = self.kinds.dealt[:, None] * self.time_ms
        self.need_ms = self.need_ms + self.kinds.ms_per_byte[:, None] * layers.stored_bytes[1]
        self.alone_ms = self.kinds.dealt[:, None] * self.time_ms + self.kinds.sum_ms
        limits = np.array([problem.memory_limit(kind) for kind in layers.types], dtype=np.float64)
        self.share = np.zeros_like(self.need_ms)
        """Of all memory of its type that a layer's replicas take."""
        self.forbidden = np.zeros(self.need_ms.shape, dtype=bool)
        if problem.count_memory:
            held = layers.held_bytes(self.kinds.units)[of_kind, np.arange(len(of_kind))]
            whole = (limits * layers.counts)[of_kind]
            self.share = self.kinds.replicas[:, None] * held / whole[:, None]
            self.forbidden = held > limits[of_kind][:, None]
        self.num_types = len(layers.types)
        self.prices = np.ones(2 * self.num_types + 1)
        """What all devices, all memory of each type and all stages are worth."""
        self.prices[self.num_types :] = 0.0

    def _kinds(self) -> _Kinds:
        problem, layers = self.problem, self.layers
        num = problem.num_microbatches
        limit = 1 if problem.constraints.straight else num
        latency, per_byte = sum_links(problem, optimistic=True)
        trained = layers.stored_bytes[1]
        found = []
        for kind, name in enumerate(layers.types):
            most = min(int(layers.counts[kind]), limit)
            all_trained = trained_bytes(problem.inputs.graphs[name])
            update = problem.whole_update_ms(name) / all_trained if all_trained else 0.0
            near = most_in_one_server(problem, name)
            for count in replica_steps(num, most)[0].tolist():
                level, steps = int(count > near), 2 * (count - 1)
                each = steps * float(per_byte[level].max()) / count + update
                alone = np.max(
                    [latency[level, i] + trained / count * per_byte[level, i] for i in (0, 1)],
                    axis=0,
                )
                alone = np.where(trained > 0, steps * alone, 0.0) + update * trained
                dealt = -(-num // count) - int(self.is_flush)
                keeps_all = problem.schedule == "gpipe" and not problem.constraints.allow_recompute
                units = num // count if keeps_all else 1
                found.append((kind, count, dealt, units, each, alone))
        kinds, counts, dealt_to, held, eaches, alones = map(np.array, zip(*found, strict=True))
        return _Kinds(kinds, counts, dealt_to.astype(float), held.astype(float), eaches, alones)

    def step_bound(self, value_ms: float) -> float:
        """Return the bound of sum of times plus largest load, by intervals of the load."""
        none = tuple(np.zeros_like(self.prices).tolist())
        open_: list[_Proven] = [_Proven(0.0, 0.0, value_ms, none)]
        for _ in range(MOST_THRESHOLDS):
            widest = heapq.heappop(open_)
            bound, low, high, prices = widest
            middle = (low + high) / 2
            if bound >= value_ms or high - low <= CLOSE * value_ms:
                heapq.heappush(open_, widest)
                break
            for start, end in ((low, middle), (middle, high)):
                found = start + self._least_ms(end, value_ms - start)
                better = tuple(self.prices.tolist()) if found > bound else prices
                heapq.heappush(open_, _Proven(max(bound, found), start, end, better))
        self.proof = [self._priced(known) for known in sorted(open_, key=lambda p: p.low_ms)]
        self.proof.append(self._priced(_Proven(0.0, value_ms, math.inf, none)))
        return min(value_ms, open_[0][0])

    def _priced(self, known: "_Proven") -> PricedLoads:
        kinds, types = self.num_types, self.layers.types
        each = np.array(known.prices[:kinds]) / self.layers.counts
        return PricedLoads(
            above_ms=known.low_ms,
            up_to_ms=None if math.isinf(known.high_ms) else known.high_ms,
            per_device=dict(zip(types, each.tolist(), strict=True)),
            per_memory=dict(zip(types, known.prices[kinds : 2 * kinds], strict=True)),
            per_stage=known.prices[-1] / (self.problem.max_stages or 1),
        )

    def load_bound(self, value_ms: float) -> float:
        """Return a largest load that no plan keeps, by halving."""
        low, high = 0.0, value_ms
        for _ in range(MOST_THRESHOLDS):
            if high - low <= CLOSE * value_ms:
                break
            middle = (low + high) / 2
            # All times count nothing here: what is left above 0 is what devices lack.
            if self._least_ms(middle, 1.0) > ROUNDING:
                low = middle
                self.proof = [self._priced(_Proven(low, 0.0, low, tuple(self.prices.tolist())))]
            else:
                high = middle
        return low

    def _least_ms(self, threshold_ms: float, target_ms: float) -> float:
        """Return a bound of the sum of times of plans within a threshold; enough if it reaches a target."""
        allowed = (self.alone_ms <= threshold_ms * (1 + ROUNDING)) & ~self.forbidden
        if not allowed.any(axis=0).all():
            return math.inf
        types, whole = self.kinds.device_type, self.problem.max_stages
        device = self.need_ms / threshold_ms * self.kinds.replicas[:, None]
        device = device / self.layers.counts[types][:, None]
        stage = self.need_ms / threshold_ms / whole if whole else np.zeros_like(device)
        own = self.time_ms if self.is_flush else np.zeros_like(device)
        own = np.where(allowed, own, math.inf)
        table = _Table(own, device, self.share, stage, types, self.num_types)
        best, columns = -math.inf, np.arange(own.shape[1])
        prices, relax = self._scaled(table, self.prices), 1.0
        for _ in range(ROUNDS):
            chosen, value = table.cheapest(prices)
            if value > best:
                best, self.prices = value, prices.copy()
            else:
                relax *= 0.6
            if best >= target_ms:
                break
            slope = self._excess(chosen, columns, device, stage)
            steepness = float(slope @ slope)
            if steepness <= 1e-18 or relax < 0.01:
                break
            prices = np.maximum(prices + relax * (target_ms - value) / steepness * slope, 0.0)
        return best

    def _scaled(self, table: _Table, prices: FloatArray) -> FloatArray:
        """Return prices times the factor that makes them prove most: a concave function, by sections."""
        low, high = -10.0, 10.0
        """Powers of two."""
        best_value, best = table.cheapest(prices)[1], prices
        inner = [low + (1 - GOLDEN) * (high - low), low + GOLDEN * (high - low)]
        values = [table.cheapest(prices * 2.0**power)[1] for power in inner]
        for _ in range(SECTIONS):
            worse = int(values[0] >= values[1])
            if values[1 - worse] > best_value:
                best_value, best = values[1 - worse], prices * 2.0 ** inner[1 - worse]
            if worse:
                high, inner[1], values[1] = inner[1], inner[0], values[0]
                inner[0] = low + (1 - GOLDEN) * (high - low)
            else:
                low, inner[0], values[0] = inner[0], inner[1], values[1]
                inner[1] = low + GOLDEN * (high - low)
            new = 0 if worse else 1
            values[new] = table.cheapest(prices * 2.0 ** inner[new])[1]
        return best

    def _excess(
        self, chosen: IntArray, columns: IntArray, device: FloatArray, stage: FloatArray
    ) -> FloatArray:
        """Return by how much each resource is used beyond what there is, as a part of that."""
        own, kinds = self.kinds.device_type[chosen], self.num_types
        excess = np.empty(2 * kinds + 1)
        excess[:kinds] = np.bincount(own, device[chosen, columns], kinds) - 1.0
        excess[kinds:-1] = np.bincount(own, self.share[chosen, columns], kinds) - 1.0
        excess[-1] = stage[chosen, columns].sum() - 1.0
        if not self.problem.max_stages:
            excess[-1] = 0.0
        if not self.problem.count_memory:
            excess[kinds:-1] = 0.0
        return excess
