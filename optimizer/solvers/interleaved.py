"""Solver for the interleaved schedule: V x P stages, dealt to P devices in turn, judged by the simulator.

The layers are cut into V x P runs; device p runs the runs p, P + p, 2 P + p, ... The search starts from runs
of equal time, each device type at its own speed, and shifts up to three cuts as long as the simulated step
gets shorter, for every order of the device types (of clusters with many, for some). Where the plans are few,
all are tried, which proves the best. Else, as there is no closed formula for ranks with several stages, the
proof is of two simple bounds: no device does more than its part of all work spread perfectly, and one
micro-batch passes all layers forward and backward.

Source of the schedule: Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters",
SC 2021, section 2.2.
"""

import itertools
import math
import operator
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from stagewright.document import InputError
from stagewright.optimizer.assemble import Prediction, draft, predict
from stagewright.optimizer.costs.cost import FloatArray
from stagewright.optimizer.costs.tables import StageTables
from stagewright.optimizer.given import GivenStages, scored_plan
from stagewright.optimizer.problem import Problem, StageChoice

from .devices import unit
from .solution import Solution

MOST_ORDERS = 24
"""Of the devices' groups: 4 groups of one device each have as many."""
MOST_PLANS = 1000
"""That are all tried: some seconds."""
SHIFTS = (-1, 1, -2, 2, -4, 4)
"""Layers by which a cut moves."""

Edges = tuple[int, ...]


def solve(problem: Problem, stages_per_rank: int, time_limit_s: float | None) -> Solution | None:
    """Return the best plan found; None if none that was looked at fits into memory.

    Raises:
        InputError: there are fewer layers, or fewer stages allowed, than stages.
    """
    tables = StageTables(problem)
    _check_size(problem, tables.size, stages_per_rank)
    ends = None if time_limit_s is None else time.perf_counter() + time_limit_s
    search = _Search(tables, stages_per_rank, ends)
    orders = list(itertools.islice(orders_of(problem), MOST_ORDERS + 1))
    num_cuts = math.comb(tables.size - 1, stages_per_rank * problem.num_devices - 1)
    is_small = len(orders) <= MOST_ORDERS and num_cuts * len(orders) <= MOST_PLANS
    for order in orders[:MOST_ORDERS]:
        if is_small:
            search.try_all(order)
        else:
            search.descend(order)
        if search.is_over():
            break
    if search.best is None:
        return None
    value_ms = search.least[1]
    is_proven = is_small and not search.is_over()
    return Solution(
        solver="interleaved",
        stages=search.best,
        value_ms=value_ms,
        bound_ms=value_ms if is_proven else min(lower_bound_ms(tables), value_ms),
        space=f"{problem.cuts.description}: {stages_per_rank} stages for each of "
        f"{problem.num_devices} devices, dealt in turn in any order, judged by simulation",
        evaluated=search.evaluated,
        stages_per_rank=stages_per_rank,
    )


def given(problem: Problem, stages: GivenStages, stages_per_rank: int) -> Solution | None:
    """Return the plan with the user's cuts and devices; None if it does not fit into memory.

    Raises:
        InputError: the number of stages is no multiple of stages_per_rank, a stage has replicas, or the types
            do not repeat.
    """
    num_ranks, left = divmod(len(stages.replicas), stages_per_rank)
    if (
        left
        or set(stages.replicas) != {1}
        or stages.types != stages.types[:num_ranks] * (stages_per_rank if stages.types else 0)
    ):
        raise InputError(
            f"--cuts makes {len(stages.replicas)} stages with {stages_per_rank} stages per rank; expected a "
            "multiple, no --replicas, and --types that repeat from device to device"
        )
    first = GivenStages(
        cuts=stages.cuts[: num_ranks - 1],
        replicas=stages.replicas[:num_ranks],
        types=stages.types[:num_ranks],
    )
    devices = [choice.devices for choice in first.choices(problem)] * stages_per_rank
    edges = stages.edges(problem)
    return scored_plan(problem, tuple(map(StageChoice, edges, edges[1:], devices)), stages_per_rank)


def lower_bound_ms(tables: StageTables) -> float:
    """Return a time that no plan of the problem's devices and cuts beats.

    If device r takes t[l, r] for the layers l between two neighbouring cuts and one micro-batch, then for any
    weights w that sum to 1 the busiest device takes at least the sum over l of min over r of w[r] t[l, r]:
    the dual of spreading the layers as fractions. With w in proportion to the devices' speeds that is exact
    where types differ by a factor.
    """
    problem = tables.problem
    layer_ms = np.array(
        [
            np.diag(_work_ms(tables, group.device_type), 1)
            for group in problem.groups
            for _ in group.slots
        ]
    )
    speeds = 1 / np.maximum(layer_ms.sum(axis=1), 1e-12)
    weights = speeds / speeds.sum()
    busiest_ms = float((weights[:, None] * layer_ms).min(axis=0).sum())
    passing_ms = float(layer_ms.min(axis=0).sum())
    return max(problem.num_microbatches * busiest_ms, passing_ms)


class _Search:
    def __init__(self, tables: StageTables, stages_per_rank: int, ends: float | None) -> None:
        self.tables = tables
        self.stages_per_rank = stages_per_rank
        self.ends = ends
        self.evaluated = 0
        self.best: tuple[StageChoice, ...] | None = None
        self.least = (np.inf, np.inf)
        """Of the best plan that fits: bytes above the memory (0), and simulated step time in ms."""

    def is_over(self) -> bool:
        return self.ends is not None and time.perf_counter() >= self.ends

    def try_all(self, order: Sequence[int]) -> None:
        """Look at every cut."""
        size = self.tables.size
        for cuts in itertools.combinations(range(1, size), len(order) * self.stages_per_rank - 1):
            if self.is_over():
                return
            self._value((0, *cuts, size), order)

    def descend(self, order: Sequence[int]) -> None:
        """Shift cuts from runs of equal time as long as it helps; the first shift that does is taken."""
        groups = self.tables.problem.groups
        types = [groups[index].device_type for index in order] * self.stages_per_rank
        edges = even_edges([_work_ms(self.tables, device_type) for device_type in types])
        value = self._value(edges, order)
        improved = True
        while improved and not self.is_over():
            improved = False
            for places, shift in itertools.product(_windows(len(edges)), SHIFTS):
                other = tuple(
                    edge + shift if place in places else edge for place, edge in enumerate(edges)
                )
                if self.is_over() or not all(map(operator.lt, other, other[1:])):
                    continue
                found = self._value(other, order)
                if found < value:
                    edges, value, improved = other, found, True

    def _value(self, edges: Edges, order: Sequence[int]) -> tuple[float, float]:
        """Return by how many bytes a plan is above the memory and its simulated step time."""
        size = len(self.tables.problem.groups)
        devices = [unit(index, size) for index in order] * self.stages_per_rank
        choices = tuple(map(StageChoice, edges, edges[1:], devices))
        prediction = predict(draft(self.tables, choices, self.stages_per_rank), self.tables.problem)
        self.evaluated += 1
        value = (float(_excess_bytes(prediction)), prediction.timeline.step_ms)
        if not value[0] and value < self.least:
            self.best, self.least = choices, value
        return value


def even_edges(work_ms: Sequence[FloatArray]) -> Edges:
    """Return the cuts that make the slowest of S stages as fast as can be, in O(S n^2).

    Args:
        work_ms: per stage (n + 1, n + 1), the time of the layers between two cuts on its device.
    """
    size = work_ms[0].shape[0] - 1
    least = np.where(np.arange(size + 1) == 0, 0.0, np.inf)
    cuts = []
    for stage_ms in work_ms:
        runs = np.maximum(least[:, None], stage_ms)
        runs[np.tril_indices(size + 1)] = np.inf
        cuts.append(runs.argmin(axis=0))
        least = runs.min(axis=0)
    edges = [size]
    for best in reversed(cuts):
        edges.append(int(best[edges[-1]]))
    return tuple(reversed(edges))


def _work_ms(tables: StageTables, device_type: str) -> FloatArray:
    """Return (n + 1, n + 1) the time of one micro-batch through the layers between two cuts and back."""
    times = tables.times[device_type]
    return times.forward_ms + times.backward_ms


def _windows(num_edges: int) -> list[range]:
    """Return which edges move together: each inner one, then each two and three neighbours."""
    inner = range(1, num_edges - 1)
    return [inner[i : i + n] for n in (1, 2, 3) for i in range(len(inner) - n + 1)]


def _excess_bytes(prediction: Prediction) -> int:
    return sum(o.peak_bytes - o.limit_bytes for o in prediction.score.overflows)


def orders_of(problem: Problem) -> Iterator[tuple[int, ...]]:
    """Yield the orders of the devices, as their groups: of the cluster, reversed, then all others."""
    first = tuple(i for i, group in enumerate(problem.groups) for _ in group.slots)
    backward = first[::-1]
    yield first
    if backward != first:
        yield backward
    for other in _arrangements(Counter(backward)):
        if other not in (first, backward):
            yield other


def _arrangements(left: Counter[int]) -> Iterator[tuple[int, ...]]:
    """Yield every order of some groups, each so often as it counts."""
    if not left:
        yield ()
    for index in list(left):
        for rest in _arrangements(left - Counter([index])):
            yield (index, *rest)


def _check_size(problem: Problem, num_layers: int, stages_per_rank: int) -> None:
    wanted = stages_per_rank * problem.num_devices
    if problem.max_stages is not None and wanted > problem.max_stages:
        raise InputError(
            f"--stages-per-rank {stages_per_rank} on {problem.num_devices} devices makes {wanted} stages, "
            f"but --max-stages is {problem.max_stages}; leave one out"
        )
    if wanted > num_layers:
        raise InputError(
            f"--stages-per-rank {stages_per_rank} on {problem.num_devices} devices makes {wanted} stages, "
            f"but the model can be cut into {num_layers} at most; use fewer stages per rank or devices"
        )
