"""Metis's layer balancer: layers are dealt to stages in proportion to the stages' performance.

Every layer is cut into seven equal parts; parts are dealt from the first stage on while a stage has capacity,
what is left over is filled in, and a stage keeps the layers of which it has more than half. So a layer split
3-3-1 is lost, and stages can be left empty: such plans are Metis's too, and are marked as not executable.

Source: Um et al., "Metis", USENIX ATC 2024, section 4.4; details as observed of its program.
"""

from collections.abc import Sequence

PARTS = 7
MOVES = 3


def balance(capacity: Sequence[float], demand: Sequence[float]) -> tuple[int, ...]:
    """Return the partition: the first layer of each stage and the end of the last.

    Args:
        capacity: performance of each stage; sums to 1.
        demand: of each layer; sums to 1.
    """
    stages, left = _deal(capacity, demand)
    layers = [_layers_kept(parts) for parts in stages]
    left = [
        whole - sum(demand[kept[0] : kept[-1] + 1]) if kept else whole
        for whole, kept in zip(capacity, layers, strict=True)
    ]
    layers = _adjust(layers, left, demand)
    partition = [0]
    for kept in layers:
        partition.append(partition[-1] + len(kept))
    return tuple(partition)


def _deal(
    capacity: Sequence[float], demand: Sequence[float]
) -> tuple[list[list[int]], list[float]]:
    """The parts of each stage, unsorted, and the capacity that is left."""
    num_stages, num_parts = len(capacity), PARTS * len(demand)
    stages: list[list[int]] = [[] for _ in capacity]
    left = list(capacity)
    part_demand = [value / PARTS for value in demand for _ in range(PARTS)]
    unassigned, cursor = [], 0
    for stage in range(num_stages - 1):
        room = left[stage]
        while cursor < num_parts - PARTS - 1:
            cursor += 1
            if room > part_demand[cursor - 1]:
                stages[stage].append(cursor - 1)
                room -= part_demand[cursor - 1]
            else:
                unassigned.append(cursor - 1)
                break
        left[stage] = room
    unassigned.extend(range(cursor, num_parts))
    _deal_to_last(unassigned, stages[-1], left, part_demand)
    lowest = [min(parts, default=-1) for parts in stages]
    highest = [max(parts, default=-1) for parts in stages]
    for part in unassigned:
        below = [stage for stage in range(num_stages) if -1 < highest[stage] < part]
        above = [stage for stage in range(num_stages) if lowest[stage] > part]
        first = max(below, key=highest.__getitem__, default=0)
        last = min(above, key=lowest.__getitem__, default=num_stages - 1)
        if last < first:
            first = last
        stage = max(range(first, last + 1), key=left.__getitem__)
        stages[stage].append(part)
        left[stage] -= part_demand[part]
        lowest[stage] = part if lowest[stage] < 0 else min(lowest[stage], part)
        highest[stage] = max(highest[stage], part)
    return stages, left


def _deal_to_last(
    unassigned: list[int], last: list[int], left: list[float], part_demand: Sequence[float]
) -> None:
    """Give the last stage its parts, from the end on, and take them out of the unassigned ones."""
    while unassigned:
        part = unassigned[-1]
        adjacent = bool(last) and part + 1 == last[-1]
        if len(last) >= PARTS and not (adjacent and left[-1] > part_demand[part]):
            break
        last.append(unassigned.pop())
        left[-1] -= part_demand[part]


def _layers_kept(parts: Sequence[int]) -> list[int]:
    counts: dict[int, int] = {}
    for part in parts:
        counts[part // PARTS] = counts.get(part // PARTS, 0) + 1
    return sorted(layer for layer, count in counts.items() if 2 * count > PARTS)


def _adjust(layers: list[list[int]], left: list[float], demand: Sequence[float]) -> list[list[int]]:
    """Move up to three boundary layers to the stage with the most capacity left, while that helps."""
    num_stages = len(layers)
    for _ in range(MOVES):
        target = max(range(num_stages), key=left.__getitem__)
        neighbours = [stage for stage in (target - 1, target + 1) if 0 <= stage < num_stages]
        if not neighbours:
            break
        source = min(neighbours, key=left.__getitem__)
        if len(layers[source]) <= 1:
            break
        moved = layers[source][-1] if source < target else layers[source][0]
        new_left = list(left)
        new_left[source] += demand[moved]
        new_left[target] -= demand[moved]
        if max(new_left) > max(left):
            break
        left = new_left
        layers = list(layers)
        layers[source] = [layer for layer in layers[source] if layer != moved]
        layers[target] = sorted([*layers[target], moved])
    return layers
