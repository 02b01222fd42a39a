"""Puts the replicas of a plan's stages, chosen by type, onto the devices of the servers."""

from collections.abc import Iterator, Sequence

import numpy as np

from stagewright.optimizer.costs.cost import IntArray
from stagewright.optimizer.problem import Group, StageChoice

from .chain import Chain
from .stage import SLACK, stage_loads_ms, total_ms

Devices = list[int]


def placements(
    rows: IntArray, chain: Chain, groups: Sequence[Group]
) -> Iterator[tuple[StageChoice, ...]]:
    """Yield ways to put the stages of rows (first, behind last, kind, replicas) on groups of devices.

    Where servers make a difference: for near messages, for near gradient sums, and for near sums of the
    stages that would else be above the largest load.
    """
    every = range(len(rows))
    yield _placed(rows, chain, groups, every[::-1], by_neighbour=True)
    if chain.is_exact:
        return
    replicas = rows[:, 3].tolist()
    largest_first = sorted(every, key=lambda stage: -replicas[stage])
    yield _placed(rows, chain, groups, largest_first, by_neighbour=False)
    costs = chain.costs._replace(inside=np.zeros_like(chain.costs.inside))
    most_ms = total_ms(chain.costs, rows)[0] * SLACK
    may_split = (stage_loads_ms(costs, rows) <= most_ms).tolist()
    critical_first = sorted(largest_first, key=lambda stage: may_split[stage])
    yield _placed(rows, chain, groups, critical_first, by_neighbour=False)


def _placed(
    rows: IntArray,
    chain: Chain,
    groups: Sequence[Group],
    order: Sequence[int],
    *,
    by_neighbour: bool,
) -> tuple[StageChoice, ...]:
    """Place stages in some order, each on one server if any has room, else on as few as possible.

    Of the servers with room: the fullest one, and before or after that the one of a neighbouring stage.
    """
    free = [len(group.slots) for group in groups]
    placed: dict[int, Devices] = {}
    for stage in order:
        kind, count = int(rows[stage, 2]), int(rows[stage, 3])
        near = {
            groups[index].server
            for neighbour in (stage - 1, stage + 1)
            for index, taken in enumerate(placed.get(neighbour, ()))
            if taken
        }
        own = [
            i
            for i, group in enumerate(groups)
            if group.device_type == chain.types[chain.costs.type_of[kind]]
        ]
        placed[stage] = devices = [0] * len(groups)
        while count:
            fitting = [i for i in own if free[i] >= count]
            if fitting:
                far = {i: groups[i].server not in near for i in fitting}
                index = min(
                    fitting, key=lambda i: (far[i], free[i]) if by_neighbour else (free[i], far[i])
                )
            else:
                index = max(own, key=lambda i: free[i])
            taken = min(free[index], count)
            assert taken
            devices[index] += taken
            free[index] -= taken
            count -= taken
    return tuple(
        StageChoice(first, last, tuple(placed[stage]), kind >= chain.num_types)
        for stage, (first, last, kind) in enumerate(rows[:, :3].tolist())
    )
