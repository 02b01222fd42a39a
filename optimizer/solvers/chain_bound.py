"""A lower bound for every cut of a branching graph: the best plan of a chain that costs no more than it.

Most branching graphs have joints: layers that every other layer is before or behind. Between two of them lies
a block; a set of layers that holds all it needs is known but for what it has of one block. These parts are
put into cells of about equal work and saved bytes, which are the cuts of the chain: of every amount (time on
a type, saved bytes, parameters) the sets of a cell have at least `low` and at most `high`. So a stage between
two sets has at least low of the one less high of the other, a stage within a cell may be left out, and the
best plan of the chain (solvers/labels) bounds those of the graph. Messages count at joints alone.

Parts of a block with too many of them are told apart by work only; of another amount they have at least what
the layers with the least of it per work have, in fractions.
"""

import itertools
import time
from dataclasses import dataclass

import numpy as np

from stagewright.optimizer.borders import spec_of
from stagewright.optimizer.branching.cuts import BoolArray
from stagewright.optimizer.costs.cost import FloatArray, IntArray
from stagewright.optimizer.costs.intervals import Holdings, Times, Traffic, trained_bytes
from stagewright.optimizer.costs.tables import StageTables
from stagewright.optimizer.ideals import TooManyIdealsError, ideals, members, membership
from stagewright.optimizer.problem import Problem, StageChoice
from stagewright.value import TensorSpec

from .fluid import Layers
from .labels.chain import chain_costs
from .labels.found import Found
from .labels.solve import search
from .labels.stage import total_ms

METHOD = "a chain of the graph's blocks, whose parts cost no more than any sets of layers with as much work"
NUM_CELLS = 120
"""Of work, in all blocks together."""
LEVELS = 12
"""Of saved bytes in each of these."""
MOST_SETS = 5000
"""That have some of a block, to be told apart."""
ROUNDING = 1e-12
MOST_LAYERS, MOST_CUTS = 2000, 1000
"""Of the graph, and of the chain."""
MOST_BLOCK = 0.5
"""Of all work; larger blocks leave too little of a chain."""


def is_possible(problem: Problem, *, mixes_types: bool) -> bool:
    """Return whether there is such a bound (mixes_types: a stage may have replicas of several types)."""
    mixes = mixes_types and len(problem.inputs.graphs) > 1 and not problem.constraints.straight
    return not mixes and problem.objective in ("step-time", "throughput")


def chain_bound(problem: Problem, known_ms: float, value_ms: float, seconds: float) -> float:
    """Return what no plan's time is below, whatever its cuts: known_ms or more, at most value_ms, a plan's.

    Raises:
        InputError: something that the bound depends on was not measured.
    """
    if len(problem.chain) > MOST_LAYERS:
        return known_ms
    blocks = _Blocks(problem)
    if blocks.largest > MOST_BLOCK or blocks.num_cuts > MOST_CUTS:
        return known_ms
    chain = chain_costs(_ChainTables(problem, blocks), optimistic=True)

    def evaluate(rows: IntArray) -> tuple[float, tuple[StageChoice, ...]]:
        load_ms, sum_ms = total_ms(chain.costs, rows)
        stages = tuple(StageChoice(row[0], row[1], tuple(row[2:])) for row in rows.tolist())
        return load_ms + (sum_ms if chain.costs.is_step_time else 0.0), stages

    found = Found(evaluate, time.perf_counter() + seconds, enough_ms=value_ms)
    search(chain, chain, found)
    return value_ms if found.is_infeasible else min(max(found.bound_ms, known_ms), value_ms)


@dataclass(frozen=True)
class _Cells:
    """The sets that have some but not all of a block, in cells that rise in work, then in saved bytes."""

    held: BoolArray | None
    """(sets, layers of the block), by cell; None: there are too many, and cells are told apart by work."""
    starts: IntArray
    """(cells,) the first set of each cell."""
    edges: FloatArray
    """(cells + 1,) of the work, if sets are not told apart."""

    def range_of(self, amounts: FloatArray, work: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the least and the most that sets of each cell have of the (layers,) amounts."""
        if self.held is not None:
            sums = self.held @ amounts
            return np.minimum.reduceat(sums, self.starts), np.maximum.reduceat(sums, self.starts)
        order = np.argsort(amounts / np.maximum(work, 1e-300), kind="stable")
        order = order[work[order] > 0]
        done = np.concatenate([[0.0], np.cumsum(work[order])])
        least = np.concatenate([[0.0], np.cumsum(amounts[order])])
        low = np.interp(self.edges[:-1], done, least)
        return low, amounts.sum() - np.interp(done[-1] - self.edges[1:], done, least)


class _Blocks:
    """The chain's cuts: behind each joint, in each cell of a block, behind the block; the loss is a joint."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.layers = problem, Layers(problem)
        self.work = self.layers.time_ms.sum(axis=0)
        self.joints = joints_of(problem)
        self.members = [
            np.arange(before + 1, joint) for before, joint in itertools.pairwise([-1, *self.joints])
        ]
        """Of each block, the layers between two joints."""
        saved = self.work
        if problem.count_memory:
            saved = self.layers.held_bytes(np.array([1.0]))[0, 0]
        self.cells = [self._cells_of(own, saved) if len(own) else None for own in self.members]

    @property
    def largest(self) -> float:
        """The largest block's part of the work."""
        works = [float(self.work[own].sum()) for own in self.members]
        return max(works) / max(float(self.work.sum()), 1e-300)

    def _cells_of(self, own: IntArray, saved: FloatArray) -> _Cells:
        work = float(self.work[own].sum())
        number = 1 + int(NUM_CELLS * work / max(float(self.work.sum()), 1e-300))
        names = {self.problem.chain[layer].name: place for place, layer in enumerate(own.tolist())}
        edges = [
            (names[source], place)
            for place, layer in enumerate(own.tolist())
            for source in self.problem.chain[layer].inputs
            if source in names
        ]
        try:
            masks = ideals(len(own), edges, MOST_SETS)[1:-1]
        except TooManyIdealsError:
            return _Cells(None, np.arange(number), np.linspace(0.0, work, number + 1))
        held = membership(masks, len(own))
        part = (held @ self.work[own] / max(work, 1e-300) * number).astype(np.int64)
        level = (held @ saved[own] / max(float(saved[own].sum()), 1e-300) * LEVELS).astype(np.int64)
        keys = part * (LEVELS + 1) + level
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
        return _Cells(held[order], starts, np.zeros(0))

    @property
    def num_cuts(self) -> int:
        """That the chain can be cut at, besides its start."""
        return sum(1 if cells is None else len(cells.starts) + 2 for cells in self.cells)

    def at_borders(self, taken: FloatArray, made: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return what stages that start at each cut receive at least, and those that end there send.

        A stage has a layer that takes nothing made in it, and one whose value nothing in it takes.

        Args:
            taken: (L + 1,) what each layer takes.
            made: (L + 1,) what it returns, 0 where no other layer takes it.
        """
        received, sent = [], [np.zeros(1)]
        for joint, own, cells in zip(self.joints, self.members, self.cells, strict=True):
            if cells is not None:
                ready, last = self._ends_of(own)
                received.append(taken[own][ready].min(keepdims=True))
                first, final = np.zeros(len(cells.starts)), np.zeros(len(cells.starts))
                if cells.held is not None:
                    first, final = self._in_cells(own, cells, taken[own], made[own])
                received.append(first)
                sent += [final, made[own][last].min(keepdims=True)]
            received.append(taken[[joint]])
            sent.append(made[[joint]])
        return np.concatenate([*received, np.zeros(1)]), np.concatenate(sent)

    def _needs(self, own: IntArray) -> BoolArray:
        """Return (m, m) which layers of a block take each one's value: [taker, maker]."""
        chain, places = self.problem.chain, {layer: i for i, layer in enumerate(own.tolist())}
        table = np.zeros((len(own), len(own)), dtype=bool)
        for layer, place in places.items():
            for name in chain[layer].inputs:
                source = places.get(self.problem.position.get(name, -1))
                if source is not None:
                    table[place, source] = True
        return table

    def _ends_of(self, own: IntArray) -> tuple[BoolArray, BoolArray]:
        needs = self._needs(own)
        return np.asarray(~needs.any(axis=1)), np.asarray(~needs.any(axis=0))

    def _in_cells(
        self, own: IntArray, cells: _Cells, taken: FloatArray, made: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return what stages receive at least that start in each cell, and send that end there."""
        assert cells.held is not None
        held, needs = cells.held, self._needs(own)
        missing = ~held @ needs.T.astype(np.int64)
        followed = held @ needs.astype(np.int64)
        first = np.where(~held & (missing == 0), taken, np.inf).min(axis=1)
        last = np.where(held & (followed == 0), made, np.inf).min(axis=1)
        first = np.where(np.isfinite(first), first, 0.0)
        return np.minimum.reduceat(first, cells.starts), np.minimum.reduceat(last, cells.starts)

    def least(self, amounts: FloatArray) -> FloatArray:
        """Return (n + 1, n + 1): what the layers between two cuts have at least of (L + 1,) amounts."""
        low, high, done = [np.zeros(1)], [np.zeros(1)], 0.0
        for joint, own, cells in zip(self.joints, self.members, self.cells, strict=True):
            if cells is not None:
                least, most = cells.range_of(amounts[own], self.work[own])
                whole = amounts[own].sum()
                low += [done + least, np.array([done + whole])]
                high += [done + most, np.array([done + whole])]
                done += whole
            done += amounts[joint]
            low.append(np.array([done]))
            high.append(np.array([done]))
        between = np.concatenate(low)[None, :] - np.concatenate(high)[:, None]
        return np.triu(np.maximum(between * (1 - ROUNDING), 0.0), k=1)


def joints_of(problem: Problem) -> list[int]:
    """Return the layers that every other one is before or behind, rising, and the loss.

    Layers are in a topological order, so these need all layers before them, and all behind need them.
    """
    size, before = len(problem.chain), [0] * len(problem.chain)
    behind = [0] * size
    for index, layer in enumerate(problem.chain):
        for name in layer.inputs:
            if name in problem.position:
                source = problem.position[name]
                before[index] |= before[source] | 1 << source
        for source in members(before[index]):
            behind[source] += 1
    joints = [i for i in range(size) if before[i].bit_count() == i and behind[i] == size - 1 - i]
    return [*joints, size]


class _ChainTables(StageTables):
    """What stages between the cuts of the chain cost at least."""

    def __init__(self, problem: Problem, blocks: _Blocks) -> None:
        self.problem, self.size = problem, blocks.num_cuts
        layers, least = blocks.layers, blocks.least
        none = np.zeros((self.size + 1, self.size + 1))
        parameters, trained = (least(stored) for stored in layers.stored_bytes)
        self.holdings = Holdings(parameters, trained, none, none)
        self.traffic = self._traffic(blocks)
        held = [layers.held_bytes(np.array([units]))[:, 0] for units in (0.0, 1.0)]
        self.times = {}
        for kind, name in enumerate(layers.types):
            forward, whole = least(layers.forward_ms[kind]), least(layers.time_ms[kind])
            backward = least(layers.time_ms[kind] - layers.forward_ms[kind])
            all_trained = trained_bytes(problem.inputs.graphs[name])
            each = problem.whole_update_ms(name) / all_trained if all_trained else 0.0
            self.times[name] = Times(
                forward_ms=forward,
                backward_ms=np.maximum(backward, whole - forward),
                update_ms=each * trained,
                saved=least(held[1][kind] - held[0][kind]),
                working=none,
            )

    def _traffic(self, blocks: _Blocks) -> Traffic:
        """Return the messages of whole tensors; those of which only parts are taken are left out."""
        problem, none = self.problem, np.zeros((self.size + 1, self.size + 1))
        made = np.zeros((2, len(problem.chain) + 1))
        taken, is_taken = np.zeros_like(made), np.zeros(made.shape[1], dtype=bool)
        for index, layer in enumerate(problem.chain):
            spec = spec_of(layer, problem.microbatch_size)
            if isinstance(spec, TensorSpec):
                size = spec.bytes_at(problem.microbatch_size)
                made[:, index] = size, size * spec.requires_grad
        for index, layer in enumerate(problem.chain):
            inputs = {problem.position[n] for n in layer.inputs if n in problem.position}
            taken[:, index] = made[:, sorted(inputs)].sum(axis=1)
            is_taken[sorted(inputs)] = True
        made[:, ~is_taken] = 0.0
        pairs = [blocks.at_borders(*pair) for pair in zip(taken, made, strict=True)]
        received, gradients = (np.triu(none + own[0][:, None], k=1) for own in pairs)
        sent, sent_gradients = (np.triu(none + own[1][None, :], k=1) for own in pairs)
        return Traffic(
            received=received,
            received_gradient=gradients,
            loaded=none,
            sent=sent,
            sent_gradient=sent_gradients,
        )

    def allowed_stages(self, device_types: frozenset[str]) -> BoolArray:
        """Return which pairs of cuts can be a stage: every one, as more plans only lower the bound."""
        return np.triu(np.ones((self.size + 1, self.size + 1), dtype=bool), k=1)
