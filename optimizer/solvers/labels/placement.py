"""Puts the replicas of a plan's stages, chosen by type, onto the devices of the servers."""

from collections.abc import Sequence

from stagewright.optimizer.costs.cost import IntArray
from stagewright.optimizer.problem import Group, StageChoice


def place(rows: IntArray, types: Sequence[str], groups: Sequence[Group]) -> tuple[StageChoice, ...]:
    """Return the stages of rows (first, behind last, type, replicas) on groups of devices.

    From the last stage: on the server of the stage behind if all replicas find room there, else on the
    fullest server that has room for all, else on as few servers as possible.
    """
    free = [len(group.slots) for group in groups]
    near: set[str] = set()
    stages = []
    for first, last, kind, count in reversed(rows.tolist()):
        own = [i for i, group in enumerate(groups) if group.device_type == types[kind] and free[i]]
        # Where all fit: beside the next stage first, then the least room left over.
        own.sort(key=lambda i: (free[i] < count, groups[i].server not in near, free[i]))
        if own and free[own[0]] < count:
            own.sort(key=lambda i: -free[i])
        devices = [0] * len(groups)
        for index in own:
            taken = min(free[index], count)
            devices[index] = taken
            free[index] -= taken
            count -= taken
        assert count == 0
        near = {groups[i].server for i, taken in enumerate(devices) if taken}
        stages.append(StageChoice(first, last, tuple(devices)))
    return tuple(reversed(stages))
