"""The stages of a graph between two nested sets of later nodes, and the exact search over sequences of them.

A plan is a chain of nested up-sets (sets closed under successors): each stage is what one holds more than the
next smaller one. What a stage costs may depend on its tensor-parallel degree t, its replicas d and the units
that it keeps in flight, which follow from the replicas of the stages behind it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stagewright.optimizer.ideals import ideals, membership, subsets_of

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Costs = Mapping[tuple[int, int], Floats]
"""By (t, d): a row per pair of up-sets, a column per number of units in flight from 1; each row ascends."""

MOST_IDEALS = 1_500
_NEVER = np.int64(2**40)


@dataclass(frozen=True, kw_only=True)
class StageSpace:
    """All stages."""

    member: npt.NDArray[np.bool_]
    """(up-sets, nodes), the empty set first, the whole last."""
    outer: npt.NDArray[np.intp]
    """For every stage the larger of its two up-sets, ascending."""
    inner: npt.NDArray[np.intp]
    num_devices: int
    most_replicas: int
    """Of all stages together."""
    choices: tuple[tuple[int, int], ...]
    """The (t, d) that a stage may have."""

    @property
    def nodes(self) -> npt.NDArray[np.bool_]:
        """(stages, nodes): what each stage holds."""
        return self.member[self.outer] & ~self.member[self.inner]

    def num_units(self, replicas: int) -> int:
        """Return the most units that each of a stage's replicas can have in flight."""
        return -(-self.most_replicas // replicas)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """One stage of the best sequence."""

    stage: int
    tensor_parallel: int
    replicas: int
    replicas_behind: int


def stage_space(
    num_nodes: int,
    edges: tuple[tuple[int, int], ...],
    *,
    num_devices: int,
    most_replicas: int,
    choices: tuple[tuple[int, int], ...],
) -> StageSpace:
    """Return the stages of a graph.

    Raises:
        TooManyIdealsError: there are more than MOST_IDEALS up-sets.
    """
    masks = ideals(num_nodes, [(target, source) for source, target in edges], MOST_IDEALS)
    member = membership(masks, num_nodes)
    inner = [subsets_of(row, member)[:-1] for row in range(len(masks))]
    return StageSpace(
        member=member,
        outer=np.repeat(np.arange(len(masks)), [len(rows) for rows in inner]),
        inner=np.concatenate(inner),
        num_devices=num_devices,
        most_replicas=most_replicas,
        choices=choices,
    )


def least_maximum(space: StageSpace, costs: Costs) -> tuple[float, tuple[Chosen, ...]] | None:
    """Return the least possible largest cost of a stage, with the stages, first to last; None if none fits.

    The answer is one of the costs; they are searched by bisection. A threshold is reached if some chain of
    up-sets has stages below it and needs no more devices than there are: least[U, s] is the least number of
    devices for the nodes of U with s replicas in all.
    """
    if not costs:  # No number of devices that the nodes can be computed on is there.
        return None
    values = np.unique(np.concatenate([cost.ravel() for cost in costs.values()]))
    values = values[np.isfinite(values)]
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        reached = _least_devices(space, costs, float(values[middle]))[-1].min() <= space.num_devices
        low, high = (low, middle) if reached else (middle + 1, high)
    if low == len(values):
        return None
    threshold = float(values[low])
    return threshold, _trace_back(space, costs, threshold)


def _least_devices(space: StageSpace, costs: Costs, threshold: float) -> Ints:
    """Return the (up-sets, replicas) table of least devices."""
    least = np.full((len(space.member), space.most_replicas + 1), _NEVER)
    least[0, 0] = 0
    starts = np.searchsorted(space.outer, np.arange(len(space.member) + 1))
    limits = {choice: _most_behind(costs, choice, threshold) for choice in space.choices}
    for row in range(1, len(space.member)):
        stages = slice(int(starts[row]), int(starts[row + 1]))
        inner = space.inner[stages]
        for choice in space.choices:
            degree, replicas = choice
            limit = limits[choice][stages]
            open_ = np.flatnonzero(limit >= 0)
            if not len(open_):
                continue
            behind = least[inner[open_], : space.most_replicas + 1 - replicas]
            allowed = np.arange(behind.shape[1]) <= limit[open_, None]
            found = np.where(allowed, behind, _NEVER).min(axis=0) + degree * replicas
            least[row, replicas:] = np.minimum(least[row, replicas:], found)
    return least


def _most_behind(costs: Costs, choice: tuple[int, int], threshold: float) -> Ints:
    """Return for every stage the most replicas behind it at which it stays below the threshold, or -1."""
    units = (costs[choice] <= threshold).sum(axis=1)
    return np.where(units > 0, choice[1] * (units - 1), -1).astype(np.int64)


def _trace_back(space: StageSpace, costs: Costs, threshold: float) -> tuple[Chosen, ...]:
    least = _least_devices(space, costs, threshold)
    limits = {choice: _most_behind(costs, choice, threshold) for choice in space.choices}
    row = len(space.member) - 1
    replicas = int(np.argmin(least[row]))
    chosen = []
    while row > 0:
        stage, choice = _step_back(space, least, limits, row, replicas)
        replicas -= choice[1]
        chosen.append(
            Chosen(
                stage=stage,
                tensor_parallel=choice[0],
                replicas=choice[1],
                replicas_behind=replicas,
            )
        )
        row = int(space.inner[stage])
    return tuple(chosen)


def _step_back(
    space: StageSpace,
    least: Ints,
    limits: Mapping[tuple[int, int], Ints],
    row: int,
    replicas: int,
) -> tuple[int, tuple[int, int]]:
    """Return a stage, and its (t, d), by which the table's entry came about."""
    stages = np.flatnonzero(space.outer == row)
    for choice in space.choices:
        behind = replicas - choice[1]
        if behind < 0:
            continue
        fits = limits[choice][stages] >= behind
        reached = least[space.inner[stages], behind] + choice[0] * choice[1] == least[row, replicas]
        found = stages[fits & reached]
        if len(found):
            return int(found[0]), choice
    raise AssertionError("every entry of the table comes from a stage")
