"""Plans whose stages have devices of one or several types: a beam of partial plans, from the last layer on.

At some prices every stage gets its best numbers of replicas of each type; the cheapest of these are put
together from the last layer on, so that the replicas behind a stage are known, and with them its units in
flight. Of the partial plans at a cut a beam of the cheapest is kept, hence plans are found, not excluded.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from stagewright.optimizer.costs.cost import FloatArray, IntArray
from stagewright.optimizer.solvers.labels.arrays import Costs

from .bound import Prices, Pricing
from .needs import SLACK, Mixing, Needs, sum_ms

MOST_ARCS = 16
"""Pairs of cuts that end at the same one, the cheapest."""
MOST_ROUGH = 1500
"""Of these, before their loads and times are looked at."""
MOST_OPTIONS = 150
"""Stages that end at the same cut, the cheapest."""
BEAM = 250
OFFERED = 8
"""Of the beam's complete plans."""

Rows = list[tuple[int, int, int, tuple[int, ...]]]
"""First cut, cut behind, variant (1: runs forward again) and replicas of each type, of each stage."""


@dataclass(frozen=True)
class Stages:
    """Stages with their devices; (O,) or (O, K) each."""

    first: IntArray
    last: IntArray
    variant: IntArray
    """1: runs forward again."""
    replicas: IntArray
    """Of each type."""
    each_ms: FloatArray
    """A micro-batch on a replica of each type, with the messages that it waits for."""
    time_ms: FloatArray
    """A micro-batch on the slowest, with its messages."""
    dealt: FloatArray
    """Micro-batches of a replica of each type, about."""
    fits: IntArray
    """Units in flight on each type."""

    def take(self, keep: IntArray) -> "Stages":
        names = self.__dataclass_fields__
        return Stages(**{name: getattr(self, name)[keep] for name in names})


def find_plans(
    mixing: Mixing, needs: Needs, prices: Prices, is_late: Callable[[], bool]
) -> Iterator[Rows]:
    """Yield plans with loads of about a threshold, the cheapest at some prices first, until it is late."""
    pricing = Pricing(mixing, needs)
    fare = pricing.fares(prices).fare
    front = _front(fare)
    each = pricing.each(prices)
    per_ms = pricing.per_ms(prices)
    options = _options(mixing, needs, pricing, fare, front, each, per_ms, is_late)
    if options is None:
        return
    stop = np.searchsorted(-options.last, -np.arange(mixing.chain.costs.num_cuts + 1), side="right")
    yield from _Beam(mixing, needs.threshold_ms, options, stop, front, each, per_ms).run(is_late)


def _front(fare: FloatArray) -> FloatArray:
    least = np.full(len(fare), np.inf)
    least[0] = 0.0
    for last in range(1, len(fare)):
        least[last] = (least[:last] + fare[last, :last]).min()
    return least


def _options(
    mixing: Mixing,
    needs: Needs,
    pricing: Pricing,
    fare: FloatArray,
    front: FloatArray,
    each: FloatArray,
    per_ms: float,
    is_late: Callable[[], bool],
) -> Stages | None:
    """Return the cheapest stages of every cut, those that end last first; None if there are none."""
    found = []
    for last in range(mixing.chain.costs.num_cuts, 0, -1):
        through = front[:last] + fare[last, :last]
        arcs = np.argsort(through, kind="stable")[:MOST_ARCS]
        arcs = arcs[through[arcs] < np.inf]
        if is_late():
            return None
        if not len(arcs):
            continue
        firsts, variants, replicas = _counts(mixing, needs, pricing, last, arcs)
        compute_ms = mixing.chain.costs.compute_ms[: mixing.chain.num_types, last, :]
        rough = front[firsts] + replicas @ each
        rough += per_ms * np.where(replicas > 0, compute_ms[:, firsts].T, 0.0).max(axis=1)
        if len(rough) > MOST_ROUGH:
            best = np.argpartition(rough, MOST_ROUGH)[:MOST_ROUGH]
            firsts, variants, replicas = firsts[best], variants[best], replicas[best]
        stages = _stages(mixing, needs.threshold_ms, last, firsts, variants, replicas)
        cost = front[stages.first] + stages.replicas @ each + per_ms * stages.time_ms
        found.append(stages.take(np.argsort(cost, kind="stable")[:MOST_OPTIONS]))
    if not found:
        return None
    names = Stages.__dataclass_fields__
    return Stages(**{n: np.concatenate([getattr(s, n) for s in found]) for n in names})


def _counts(
    mixing: Mixing, needs: Needs, pricing: Pricing, last: int, arcs: IntArray
) -> tuple[IntArray, IntArray, IntArray]:
    """Return first cuts, variants and replicas (O, K) of stages that end at a cut."""
    chain = mixing.chain
    kinds = chain.num_types
    firsts, variants, counts = [], [], []
    for kind, one in enumerate(chain.costs.type_of.tolist()):
        own = arcs[needs.replicas[kind, last, arcs] > 0]
        block = np.zeros((len(own), kinds), dtype=np.int64)
        block[:, one] = needs.replicas[kind, last, own]
        firsts.append(own)
        variants.append(np.full(len(own), kind // kinds))
        counts.append(block)
    for variant, slowest, (a, b) in itertools.product(
        range(mixing.num_variants), range(kinds), itertools.permutations(range(kinds), 2)
    ):
        dealt = needs.dealt[variant, slowest][:, last, arcs]
        for others in itertools.product((0, 1), repeat=kinds - 2):
            chosen = np.zeros(kinds, dtype=np.int64)
            chosen[[kind for kind in range(kinds) if kind not in (a, b)]] = others
            if slowest not in (a, b) and not chosen[slowest]:
                continue
            rows, found = _filled(chosen, a, b, dealt, chain.costs)
            firsts.append(arcs[rows])
            variants.append(np.full(len(rows), variant))
            counts.append(found)
    return np.concatenate(firsts), np.concatenate(variants), np.concatenate(counts)


def _filled(
    block: IntArray, a: int, b: int, dealt: IntArray, costs: Costs
) -> tuple[IntArray, IntArray]:
    """Return columns of (K, A) most micro-batches, and replicas (O, K) that are dealt all, none needless.

    Some of type a, of b as many as are needed with those, of the others as in `block`.
    """
    num = costs.num_microbatches
    own = np.flatnonzero(
        (dealt[[a, b]] > 0).all(axis=0) & ((dealt > 0) | (block[:, None] == 0)).all(axis=0)
    )
    rest = num - block @ dealt[:, own]
    most = -(-rest // np.maximum(dealt[a, own], 1))
    if not len(own) or most.max() < 1:
        return own[:0], np.zeros((0, len(block)), dtype=np.int64)
    count = np.arange(1, min(int(most.max()), int(costs.counts[a])) + 1)[None, :]
    left = rest[:, None] - count * dealt[a, own][:, None]
    second = np.maximum(0, -(-left // dealt[b, own][:, None]))
    keep = (second <= costs.counts[b]) & (left + dealt[a, own][:, None] > 0)
    row, column = np.nonzero(keep)
    found = np.tile(block, (len(row), 1))
    found[:, a], found[:, b] = count[0, column], second[row, column]
    several = np.flatnonzero((found > 0).sum(axis=1) > 1)
    return own[row[several]], found[several]


def _stages(
    mixing: Mixing,
    threshold_ms: float,
    last: int,
    firsts: IntArray,
    variants: IntArray,
    replicas: IntArray,
) -> Stages:
    """Return stages that end at a cut, those whose load is within a threshold."""
    costs, kinds = mixing.chain.costs, mixing.chain.num_types
    own = np.arange(kinds)[None, :] + kinds * variants[:, None]
    at = (own, last, firsts[:, None])
    total, several = replicas.sum(axis=1), (replicas > 0).sum(axis=1) > 1
    single = (replicas > 0).argmax(axis=1)
    near = np.where(several, mixing.near_mixed, costs.near[single])
    inside = np.where(several, mixing.most_together, costs.inside[single])
    far = (total > near).astype(np.int64)
    forward, backward = costs.forward_ms[far, last, firsts], costs.backward_ms[far, last, firsts]
    each = costs.compute_ms[at]
    if costs.waits:
        each = each + (forward + backward)[:, None]
    used = replicas > 0
    latency = np.where(used, each, 0.0).max(axis=1)
    end = np.where(used, costs.end_ms[at], 0.0).max(axis=1)
    end = end + sum_ms(costs, costs.own_bytes[last, firsts], total, inside)
    room = threshold_ms * SLACK - end + (latency if costs.is_step_time else 0.0)
    safe = np.where(each > 0, each, 1.0)
    num = costs.num_microbatches
    most = np.where(each > 0, np.floor(np.clip(room[:, None] / safe * SLACK, -1, num)), num)
    keeps = ((most >= 1) | ~used).all(axis=1) & ((most * replicas).sum(axis=1) >= num)
    keeps &= total <= num
    speed = np.where(used & (each > 0), replicas / safe, 0.0).sum(axis=1)
    dealt = np.ceil(num / np.maximum(speed, 1e-300)[:, None] / safe)
    dealt = np.where(used, np.clip(dealt, 1, np.maximum(most, 1)), 0.0)
    time_ms = latency + (0.0 if costs.waits else forward + backward)
    stages = Stages(
        firsts, np.full(len(firsts), last), variants, replicas, each, time_ms, dealt, costs.fits[at]
    )
    return stages.take(np.flatnonzero(keeps))


@dataclass
class _Labels:
    """Partial plans from one cut on."""

    used: IntArray
    """(N, K) devices."""
    time_ms: FloatArray
    stages: IntArray
    """How many."""
    option: IntArray
    """The first stage."""
    parent: IntArray
    """Among the labels of the cut behind that stage."""

    def take(self, keep: IntArray) -> "_Labels":
        return _Labels(*(getattr(self, name)[keep] for name in self.__dataclass_fields__))


class _Beam:
    def __init__(
        self,
        mixing: Mixing,
        threshold_ms: float,
        options: Stages,
        stop: IntArray,
        front: FloatArray,
        each: FloatArray,
        per_ms: float,
    ) -> None:
        self.mixing, self.costs = mixing, mixing.chain.costs
        self.threshold_ms, self.options, self.stop = threshold_ms, options, stop
        self.each, self.per_ms = each, per_ms
        self.waiting: list[list[_Labels]] = [[] for _ in front]
        self.kept: list[_Labels | None] = [None] * len(front)

    def run(self, is_late: Callable[[], bool]) -> Iterator[Rows]:
        size, kinds = self.costs.num_cuts, self.mixing.chain.num_types
        one = np.zeros(1, dtype=np.int64)
        start = _Labels(np.zeros((1, kinds), dtype=np.int64), np.zeros(1), one, one, one)
        self.waiting[size] = [start]
        for cut in range(size, -1, -1):
            if is_late():
                return
            if not self.waiting[cut]:
                continue
            self.kept[cut] = labels = self._prune(self.waiting[cut])
            self.waiting[cut] = []
            begin = int(self.stop[cut + 1]) if cut < size else 0
            if begin < self.stop[cut]:
                self._extend(labels, np.arange(begin, self.stop[cut]))
        found = self.kept[0]
        if found is not None:
            for index in range(min(len(found.option), OFFERED)):
                yield self._plan(index)

    def _prune(self, waiting: list[_Labels]) -> _Labels:
        names = _Labels.__dataclass_fields__
        labels = _Labels(*(np.concatenate([getattr(w, n) for w in waiting]) for n in names))
        cost = labels.used @ self.each + self.per_ms * labels.time_ms
        order = np.argsort(cost, kind="stable")
        _, unique = np.unique(labels.used[order], axis=0, return_index=True)
        return labels.take(order[np.sort(unique)[:BEAM]])

    def _extend(self, labels: _Labels, chosen: IntArray) -> None:
        """Put every one of some stages before every label, as far as limits and memory let it."""
        options, costs = self.options.take(chosen), self.costs
        num, slack = costs.num_microbatches, self.threshold_ms * SLACK
        used = labels.used[:, None, :] + options.replicas[None, :, :]
        keep = (used <= costs.counts).all(axis=2) & (used @ costs.hourly <= costs.budget)
        if self.mixing.chain.max_stages:
            keep &= labels.stages[:, None] < self.mixing.chain.max_stages
        parent, option = np.nonzero(keep)
        dealt, behind = options.dealt[option], used[parent, option].sum(axis=1)
        units = dealt
        if not costs.holds_all:
            units = np.minimum(dealt, np.ceil(behind[:, None] * dealt / num))
        rounds = dealt / np.maximum(units, 1) - float(costs.is_step_time)
        window = rounds * (options.each_ms[option] + labels.time_ms[parent][:, None])
        fits = (units <= options.fits[option]) & (window <= slack)
        good = (fits | (options.replicas[option] == 0)).all(axis=1)
        parent, option = parent[good], option[good]
        grown = _Labels(
            used[parent, option],
            labels.time_ms[parent] + options.time_ms[option],
            labels.stages[parent] + 1,
            chosen[option],
            parent,
        )
        for first in np.unique(options.first[option]):
            self.waiting[first].append(grown.take(np.flatnonzero(options.first[option] == first)))

    def _plan(self, index: int) -> Rows:
        rows, cut = [], 0
        while cut < self.costs.num_cuts:
            labels, options = self.kept[cut], self.options
            assert labels is not None
            option = int(labels.option[index])
            last = int(options.last[option])
            rows.append(
                (cut, last, int(options.variant[option]), tuple(options.replicas[option].tolist()))
            )
            index, cut = int(labels.parent[index]), last
        return rows
