"""Arithmetic on sets of devices: how many of each group."""

from stagewright.optimizer.costs.tables import Devices


def unit(place: int, size: int) -> Devices:
    """Return one device of the group at a place, of size groups."""
    return tuple(int(index == place) for index in range(size))


def plus(first: Devices, second: Devices) -> Devices:
    return tuple(a + b for a, b in zip(first, second, strict=True))


def minus(first: Devices, second: Devices) -> Devices:
    return tuple(a - b for a, b in zip(first, second, strict=True))
