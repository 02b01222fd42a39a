"""Puts the replicas of a plan's stages, chosen by type, onto the devices of the servers."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from stagewright.optimizer.costs.cost import IntArray
from stagewright.optimizer.problem import Group, StageChoice

from .chain import Chain
from .stage import SLACK, stage_loads_ms, total_ms


def placements(
    rows: IntArray, chain: Chain, groups: Sequence[Group]
) -> Iterator[tuple[StageChoice, ...]]:
    """Yield ways to put the stages of rows (first, behind last, kind, replicas) on groups of devices.

    Where servers make a difference: for near messages, for near gradient sums, and for near sums of the
    stages that would else be above the largest load.
    """
    types = [chain.types[kind] for kind in chain.costs.type_of[rows[:, 2]].tolist()]
    wanted = [{kind: count} for kind, count in zip(types, rows[:, 3].tolist(), strict=True)]

    def choices(order: Sequence[int], *, by_neighbour: bool) -> tuple[StageChoice, ...]:
        placed = place(wanted, groups, order, by_neighbour=by_neighbour)
        return tuple(
            StageChoice(first, last, devices, kind >= chain.num_types)
            for (first, last, kind), devices in zip(rows[:, :3].tolist(), placed, strict=True)
        )

    every = range(len(rows))
    yield choices(every[::-1], by_neighbour=True)
    if chain.is_exact:
        return
    largest = largest_first(wanted)
    yield choices(largest, by_neighbour=False)
    costs = chain.costs._replace(inside=np.zeros_like(chain.costs.inside))
    most_ms = total_ms(chain.costs, rows)[0] * SLACK
    may_split = (stage_loads_ms(costs, rows) <= most_ms).tolist()
    critical_first = sorted(largest, key=lambda stage: may_split[stage])
    yield choices(critical_first, by_neighbour=False)


def largest_first(wanted: Sequence[Mapping[str, int]]) -> list[int]:
    """Return the numbers of stages, those of most replicas first."""
    return sorted(range(len(wanted)), key=lambda stage: -sum(wanted[stage].values()))


def place(
    wanted: Sequence[Mapping[str, int]],
    groups: Sequence[Group],
    order: Sequence[int],
    *,
    by_neighbour: bool,
) -> list[tuple[int, ...]]:
    """Return the devices of each group for stages that want some of each type.

    Stages are placed in some order, each on one server if any has room, else each type on as few as
    possible. Of the servers with room: the fullest one, and before or after that the one of a neighbour.
    """
    free = [len(group.slots) for group in groups]
    placed: dict[int, list[int]] = {}
    for stage in order:
        near = {
            groups[index].server
            for neighbour in (stage - 1, stage + 1)
            for index, taken in enumerate(placed.get(neighbour, ()))
            if taken
        }
        servers = _servers_with_room(wanted[stage], groups, free)
        placed[stage] = devices = [0] * len(groups)
        for kind, wanted_count in wanted[stage].items():
            own = [i for i, group in enumerate(groups) if group.device_type == kind]
            inside = [i for i in own if groups[i].server in servers] if servers else own
            count = wanted_count
            while count:
                fitting = [i for i in inside if free[i] >= count]
                if fitting:
                    far = {i: groups[i].server not in near for i in fitting}
                    index = min(
                        fitting,
                        key=lambda i: (far[i], free[i]) if by_neighbour else (free[i], far[i]),
                    )
                else:
                    index = max(own, key=lambda i: free[i])
                taken = min(free[index], count)
                assert taken
                devices[index] += taken
                free[index] -= taken
                count -= taken
            servers &= {groups[i].server for i, taken in enumerate(devices) if taken}
    return [tuple(placed[stage]) for stage in range(len(wanted))]


def _servers_with_room(
    wanted: Mapping[str, int], groups: Sequence[Group], free: Sequence[int]
) -> set[str]:
    """Return the servers that have room for all that a stage wants."""
    room = {
        (group.server, group.device_type): left for group, left in zip(groups, free, strict=True)
    }
    servers = {group.server for group in groups}
    return {
        server
        for server in servers
        if all(room.get((server, kind), 0) >= count for kind, count in wanted.items())
    }
