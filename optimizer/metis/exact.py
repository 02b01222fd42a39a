"""The proven optimum under Metis's own cost formula and memory rule, over more plans than its search sees.

All compositions of the ranks into power-of-two groups in any order, all strategies and all cuts count; every
stage has a layer, no layer is lost, and a tensor-parallel group has one device type.

Method: the cost is sum(stage + messages) plus (B - 1) max(stage) + max(update) + max(all-reduce). With upper
limits on the three maxima a dynamic programme over (rank, layer) gives the least sum exactly; with lower
limits in place of the maxima, that sum gives a bound. Branch and bound over boxes of limits, the least bound
first, closes the gap: boxes are tightened to what can beat the best plan, then halved where they are loosest.
"""

import heapq
import itertools
import math
import time
from dataclasses import dataclass, field

import numpy as np

from .cost import cost_of
from .options import FloatArray, Options, OptionSet, build_options
from .plan import MetisPlan
from .problem import Problem
from .search import RankedPlan

TOLERANCE = 1e-9
"""Relative: a box that cannot beat the best plan by more is closed."""
Limits = tuple[float, float, float]
"""Of the greatest stage, update and all-reduce time, in ms."""
NO_LIMITS: Limits = (math.inf, math.inf, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactResult:
    """The best plan, if any is feasible, and the proof."""

    best: RankedPlan | None
    bound_ms: float
    """No plan costs less; infinite if no plan is feasible."""
    proven: bool
    num_programmes: int
    """Dynamic programmes that were solved."""

    @property
    def gap(self) -> float:
        """How far the best plan may be from the optimum, relative to it."""
        if self.best is None:
            return 0.0 if self.proven else math.inf
        return max(0.0, 1 - self.bound_ms / self.best.cost_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Solution:
    """The plan with the least sum under some limits."""

    plan: MetisPlan
    sum_ms: float
    """Stages, messages, and the last stage's time outside the layers."""
    maxima: Limits


@dataclass(frozen=True, slots=True, order=True)
class _Box:
    """Plans whose maxima lie between limits. Ordered by bound, then by age."""

    bound_ms: float
    number: int
    options: OptionSet = field(compare=False)
    lower: Limits = field(compare=False)
    upper: Limits = field(compare=False)
    solution: _Solution = field(compare=False)


def solve_exactly(
    problem: Problem, time_limit_s: float = math.inf, device_memory: bool = False
) -> ExactResult:
    """Return the cheapest plan and a bound on the cost of all.

    Args:
        problem: what to plan.
        time_limit_s: return the best plan so far and its bound after this time, as after Ctrl-C.
        device_memory: allow only stages whose profiled memory fits each device.
    """
    return _BranchAndBound(problem, device_memory).run(time.monotonic() + time_limit_s)


class _BranchAndBound:
    def __init__(self, problem: Problem, device_memory: bool) -> None:
        self.problem, self.device_memory = problem, device_memory
        self.best: RankedPlan | None = None
        self.boxes: list[_Box] = []
        self.num_programmes = 0
        self.numbers = itertools.count()
        first = problem.folder.first[1].execution_time
        self.batch_generator_ms = first.batch_generator_time_ms

    def run(self, deadline: float) -> ExactResult:
        unopened_ms = self._open_roots(deadline)
        while self.boxes and time.monotonic() < deadline:
            if self.boxes[0].bound_ms >= self._goal_ms():
                break
            box = heapq.heappop(self.boxes)
            try:
                self._split(box)
            except KeyboardInterrupt:
                heapq.heappush(self.boxes, box)
                break
        open_ms = min([unopened_ms, *(box.bound_ms for box in self.boxes)])
        proven = open_ms >= self._goal_ms()
        bound_ms = (self.best.cost_ms if self.best else math.inf) if proven else open_ms
        return ExactResult(
            best=self.best,
            bound_ms=bound_ms,
            proven=proven,
            num_programmes=self.num_programmes,
        )

    def _goal_ms(self) -> float:
        """The cost from which on a box is of no use."""
        return self.best.cost_ms * (1 - TOLERANCE) if self.best else math.inf

    def _open_roots(self, deadline: float) -> float:
        """Open a box for every node sequence and number of micro-batches; return a bound of the others.

        Those with the least bound come first, so that the others start from a good plan.
        """
        roots: list[tuple[float, int, float, OptionSet]] = []
        names = [device.name for device in self.problem.devices]
        unopened_ms = math.inf
        for node_sequence in itertools.permutations(names):
            ranks = self.problem.span(node_sequence)
            for batches in self.problem.batches:
                if roots and time.monotonic() >= deadline:
                    unopened_ms = 0.0
                    break
                options = build_options(self.problem, ranks, batches, self.device_memory)
                if options.blocks:
                    self.num_programmes += 1
                    slowest_ms = _least_bottleneck(self.problem, options)
                    bound_ms = batches * (slowest_ms + self.batch_generator_ms)
                    roots.append((bound_ms, len(roots), slowest_ms, options))
        for bound_ms, _, slowest_ms, options in sorted(roots, key=lambda root: root[:2]):
            if self.best and time.monotonic() >= deadline:
                return min(unopened_ms, bound_ms)
            lower = (slowest_ms, 0.0, 0.0)
            if bound_ms < self._goal_ms():
                self._open(options, lower, self._tightened(options, bound_ms, lower, NO_LIMITS))
        return unopened_ms

    def _open(self, options: OptionSet, lower: Limits, upper: Limits) -> None:
        self.num_programmes += 1
        solution = _least_sum(self.problem, options, upper)
        if solution is None:
            return
        cost_ms = cost_of(self.problem, solution.plan).total
        if self.best is None or cost_ms < self.best.cost_ms:
            self.best = RankedPlan(plan=solution.plan, cost_ms=cost_ms)
        self._push(options, lower, upper, solution)

    def _push(self, options: OptionSet, lower: Limits, upper: Limits, solution: _Solution) -> None:
        bound_ms = solution.sum_ms + options.batches * self.batch_generator_ms
        weights = _weights(options)
        bound_ms += sum(weight * least for weight, least in zip(weights, lower, strict=True))
        if bound_ms < self._goal_ms():
            box = _Box(bound_ms, next(self.numbers), options, lower, upper, solution)
            heapq.heappush(self.boxes, box)

    def _split(self, box: _Box) -> None:
        """Tighten a box to what can beat the best plan; halve it if its own solution still lies in it."""
        upper = self._tightened(box.options, box.bound_ms, box.lower, box.upper)
        maxima = box.solution.maxima
        if any(value > limit for value, limit in zip(maxima, upper, strict=True)):
            self._open(box.options, box.lower, upper)
            return
        loose_ms = [
            weight * (value - least)
            for weight, value, least in zip(_weights(box.options), maxima, box.lower, strict=True)
        ]
        place = max(range(3), key=loose_ms.__getitem__)
        middle = (box.lower[place] + maxima[place]) / 2
        self._open(box.options, box.lower, _with(upper, place, middle))
        self._push(box.options, _with(box.lower, place, middle), upper, box.solution)

    def _tightened(
        self, options: OptionSet, bound_ms: float, lower: Limits, upper: Limits
    ) -> Limits:
        """The upper limits beyond which the bound, with one maximum there, reaches the best plan's cost."""
        room_ms = self._goal_ms() - bound_ms
        stage, update, all_reduce = (
            min(limit, least + room_ms / weight) if weight else limit
            for limit, least, weight in zip(upper, lower, _weights(options), strict=True)
        )
        return stage, update, all_reduce


def _weights(options: OptionSet) -> Limits:
    """How often the cost counts each maximum beyond the sum."""
    return (options.batches - 1, 1.0, 1.0)


def _with(limits: Limits, place: int, value: float) -> Limits:
    changed = [*limits]
    changed[place] = value
    return changed[0], changed[1], changed[2]


def _least_bottleneck(problem: Problem, options: OptionSet) -> float:
    """Return the least possible time of the slowest stage; infinite if there is no plan."""
    num_layers, num_devices = problem.settings.num_layers, options.ranks.size
    slowest = np.full((num_devices + 1, num_layers + 1), np.inf)
    slowest[num_devices, num_layers] = -np.inf
    space = _space_for(options)
    for start in range(num_devices - 1, -1, -1):
        for block, fitting in options.at(start):
            rest = slowest[start + block.sizes[fitting]]
            either = np.maximum(block.stage_ms[fitting], rest[:, None, :], out=space[: len(rest)])
            np.minimum(slowest[start], either.min(axis=0).min(axis=1), out=slowest[start])
    return float(slowest[0, 0])


def _least_sum(problem: Problem, options: OptionSet, limits: Limits) -> _Solution | None:
    """Return the plan with the least sum of stages and messages under limits, None if there is none."""
    options = options.limited(limits)
    num_layers, num_devices = problem.settings.num_layers, options.ranks.size
    # by first rank, first layer, and the type of the first stage's last rank, which messages depend on
    least = np.full((num_devices + 1, num_layers + 1, len(options.ranks.counts)), np.inf)
    space = _space_for(options)
    for start in reversed(_reachable(options)):
        for block, fitting in options.at(start):
            rest = _rest(block, fitting, least, start)
            sums = np.add(block.stage_ms[fitting], rest[:, None, :], out=space[: len(rest)])
            column = least[start, :, block.end_type]
            np.minimum(column, sums.min(axis=0).min(axis=1), out=column)
    if not np.isfinite(least[0, 0].min()):
        return None
    return _trace(problem, options, least)


def _space_for(options: OptionSet) -> FloatArray:
    """Room for the sums of all options that start at one rank: allocating it anew each time is slow."""
    most = max(int((block.end_ranks - block.first_ranks).max()) for block in options.blocks)
    return np.empty((most, *options.blocks[0].stage_ms.shape[1:]))


def _reachable(options: OptionSet) -> list[int]:
    """Return the ranks at which a stage can start, in order."""
    num_devices = options.ranks.size
    reached = np.zeros(num_devices + 1, dtype=bool)
    reached[0] = True
    for start in range(num_devices):
        if reached[start]:
            for block, fitting in options.at(start):
                reached[start + block.sizes[fitting]] = True
    return np.flatnonzero(reached[:num_devices]).tolist()


def _rest(block: Options, fitting: slice, least: FloatArray, start: int) -> FloatArray:
    """(fitting, L + 1) what follows a stage: message and least sum; behind the last rank, the last's own."""
    ends = start + block.sizes[fitting]
    rest: FloatArray = (block.message_ms[fitting] + least[ends]).min(axis=2)
    at_end = ends == len(least) - 1
    rest[at_end, -1] = block.last_ms[fitting][at_end]
    return rest


def _trace(problem: Problem, options: OptionSet, least: FloatArray) -> _Solution:
    """Walk from the first rank and layer to the last along stages that attain the least sum."""
    num_layers, num_devices = problem.settings.num_layers, options.ranks.size
    start, layer = 0, 0
    message_ms: FloatArray = np.zeros(least.shape[2])  # of the stage before, by the end type
    groups, strategies, partition, maxima = [], [], [0], [0.0, 0.0, 0.0]
    while start < num_devices:
        best_ms, best = math.inf, (options.blocks[0], 0, 0)
        for block, fitting in options.at(start):
            sums = block.stage_ms[fitting, layer] + _rest(block, fitting, least, start)
            place = int(sums.argmin())
            sum_ms = float(sums.flat[place]) + float(message_ms[block.end_type])
            if sum_ms < best_ms:
                option, end = divmod(place, num_layers + 1)
                best_ms, best = sum_ms, (block, fitting.start + option, end)
        block, option, end = best
        size, degree = int(block.sizes[option]), int(block.degrees[option])
        arrays = (block.stage_ms, block.update_ms, block.all_reduce_ms)
        for kind, array in enumerate(arrays):
            maxima[kind] = max(maxima[kind], float(array[option, layer, end]))
        groups.append(size)
        strategies.append((size // degree, degree))
        partition.append(end)
        message_ms = block.message_ms[option, end]
        start, layer = start + size, end
    plan = MetisPlan(
        node_sequence=options.ranks.types,
        device_groups=tuple(groups),
        strategies=tuple(strategies),
        batches=options.batches,
        partition=tuple(partition),
        stages_charged=len(groups),
    )
    return _Solution(
        plan=plan, sum_ms=float(least[0, 0].min()), maxima=(maxima[0], maxima[1], maxima[2])
    )
