"""Device groups: in how many ways, and in which order, Metis hands the devices to a number of stages."""

from collections.abc import Iterator

from .problem import powers_of_two

Units = list[tuple[int, ...]]


def device_groups(
    num_stages: int, num_devices: int, min_group_scale: float, max_permute_length: int
) -> Iterator[tuple[int, ...]]:
    """Yield every composition of the devices into groups of power-of-two sizes, one group per stage.

    Groups smaller than min_group_scale times the even share are left out. Where a composition has more than
    max_permute_length groups, equal neighbours are merged to units, and units are permuted.

    Source: Um et al., "Metis", USENIX ATC 2024, section 4.2; the order is that of its program.
    """
    even = max(num_devices // num_stages, num_stages // num_devices)
    allowed = [size for size in powers_of_two(num_devices) if size >= even * min_group_scale]
    for sizes in _multisets(num_stages, num_devices, allowed):
        units = _merge([(size,) for size in sizes], max_permute_length)
        for arrangement in _permutations(units):
            yield tuple(size for unit in arrangement for size in unit)


def _multisets(length: int, total: int, allowed: list[int]) -> Iterator[tuple[int, ...]]:
    """Yield the nondecreasing tuples of allowed sizes with a sum, in lexicographic order."""
    if not allowed or not length * allowed[0] <= total <= length * allowed[-1]:
        return
    if length == 1:
        if total in allowed:
            yield (total,)
        return
    for index, size in enumerate(allowed):
        for rest in _multisets(length - 1, total - size, allowed[index:]):
            yield (size, *rest)


def _merge(units: Units, max_length: int) -> Units:
    """Merge pairs of smallest units until there are few enough, or no more can be merged."""
    need = len(units) - max_length
    while need > 0:
        smallest = units[0]
        differing = (index + 1 for index, unit in enumerate(units) if unit != smallest)
        run = next(differing, len(units))
        if run // 2 > need:
            need = run // 2
        units = _merge_pairs(units, need, sum(smallest))
        left = len(units) - max_length
        if left == need:
            break
        need = left
    return units


def _merge_pairs(units: Units, need: int, smallest: int) -> Units:
    merged: Units = []
    for pair, first in enumerate(range(0, len(units), 2)):
        if need <= pair:
            return merged + units[first:]
        both = units[first : first + 2]
        if len(both) == 2 and sum(both[0]) == sum(both[1]) == smallest:
            merged.append(both[0] + both[1])
        else:
            merged += both
    return merged


def _permutations(units: Units) -> Iterator[Units]:
    """Yield every distinct arrangement once; each is the one before with a prefix shifted by one.

    Source: Williams, "Loopless Generation of Multiset Permutations using a Constant Number of Variables by
    Prefix Shifts", SODA 2009, algorithm 1, on a linked list of positions.
    """
    values = sorted(units, reverse=True)
    if len(values) == 1:
        yield values
        return
    follows: list[int | None] = [*range(1, len(values)), None]
    head, before_last, last = 0, len(values) - 2, len(values) - 1
    yield _arranged(values, follows, head)
    while True:
        after = follows[last]
        if after is None and values[last] >= values[head]:
            return
        shift_from = (
            last if after is not None and values[before_last] >= values[after] else before_last
        )
        moved = follows[shift_from]
        assert moved is not None
        follows[shift_from] = follows[moved]
        follows[moved] = head
        if values[moved] < values[head]:
            before_last = moved
        follower = follows[before_last]
        assert follower is not None
        last, head = follower, moved
        yield _arranged(values, follows, head)


def _arranged(values: Units, follows: list[int | None], head: int) -> Units:
    arrangement = []
    position: int | None = head
    while position is not None:
        arrangement.append(values[position])
        position = follows[position]
    return arrangement
