"""The places where a layer graph may be cut: all of them where they are few, else the prefixes of orders.

A cut is a set of the chain's layers that holds every layer that one of its own needs (an ideal). A stage is
what lies between two nested cuts; so, whatever the cuts, a plan is a path of nested cuts from none of the
layers to all. Cuts are numbered by size, 0 to n; a cut within another has the smaller number.

Parallel branches have very many cuts. Then the graph is contracted: its cuts are the prefixes of some
topological orders, and a stage may go from a prefix of one order to one of another around it. Long chains are
thinned: of the cuts in each slice of the time, the one with the fewest bytes across stays.

Source: ideals as states: Tarnawski et al., NeurIPS 2020, section 5.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stagewright.optimizer.ideals import TooManyIdealsError, ideals, membership

from .orders import few_bytes_order, late_order
from .units import Units

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.intp]

Cutting = Literal["every", "orders", "order"]
"""All cuts of the graph; the prefixes of some orders; those of the graph's own order."""

MOST_EVERY = 600
"""Cuts that are searched all; more are contracted."""
MOST_IN_ORDER = 1500
"""Layers of a chain that can be cut everywhere: the tables hold some dozens of numbers per pair of cuts."""
MOST_THIN = 400
"""Cuts of a contracted graph or a longer chain."""
MOST_AROUND = 300
"""Cuts close to those of a plan, when it is made better."""


@dataclass(frozen=True, eq=False)
class GraphCuts:
    """Cuts of one graph, small ones first; the first holds no layer and the last holds every one."""

    order: IntArray
    """(L,) the chain's layers in an order of which every cut is a prefix, if is_chain."""
    sizes: IntArray
    """(n + 1,) how many layers are before each cut."""
    inside: BoolArray | None
    """(n + 1, L) which layers are before each cut; None: the first sizes[k] layers of the order."""
    spine: IntArray
    """Numbers of cuts each within the next one, from the first cut to the last, in small steps."""
    is_thin: bool
    """Whether cuts of the orders were left out for their number."""
    is_complete: bool
    """Whether some best plan of the graph, whatever its cuts, cuts here."""
    description: str
    """Which cuts these are, for people."""

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def num_layers(self) -> int:
        return len(self.order)

    @property
    def is_chain(self) -> bool:
        """Whether each cut lies within the next one."""
        return self.inside is None

    @cached_property
    def entry(self) -> IntArray:
        """(L + 1,) of a chain: the first cut behind each layer; last, behind the end of the model."""
        position = np.empty(self.num_layers, np.intp)
        position[self.order] = np.arange(self.num_layers)
        return np.append(np.searchsorted(self.sizes, position, side="right"), len(self) - 1)

    @cached_property
    def nested(self) -> BoolArray:
        """(n + 1, n + 1) whether cut p lies within cut q and is smaller: (p, q) can be a stage."""
        if self.inside is None:
            return np.triu(np.ones((len(self), len(self)), dtype=bool), k=1)
        table = self.inside.astype(np.float32)
        within: BoolArray = table @ table.T == self.sizes[:, None].astype(np.float32)
        return within & (self.sizes[:, None] < self.sizes[None, :])

    def held(self, first: int, last: int) -> tuple[int, ...]:
        """Return the layers between two nested cuts, rising."""
        if self.inside is None:
            return tuple(sorted(self.order[self.sizes[first] : self.sizes[last]].tolist()))
        return tuple(np.flatnonzero(self.inside[last] & ~self.inside[first]).tolist())

    def sums(self, values: FloatArray) -> FloatArray:
        """Return (n + 1,) sums of (L,) values over the layers before each cut."""
        if self.inside is not None:
            return np.asarray(self.inside @ values, dtype=np.float64)
        return np.concatenate([[0.0], np.cumsum(values[self.order])])[self.sizes]

    def behind(self, position: int) -> int:
        """Return the cut of a chain behind some layers of its order, or the next one that there is."""
        return int(np.searchsorted(self.sizes, position))


def cuts_in_order(
    num_bytes: FloatArray, work_ms: FloatArray, kept: Sequence[int], *, branches: bool
) -> GraphCuts:
    """Return the cuts of a graph in its own order: all, or if they are many some, with those to be kept.

    Args:
        num_bytes: (L + 1,) that cross the cut behind each number of layers.
        work_ms: (L,) of each layer.
        branches: whether the graph has other orders.
    """
    size = len(work_ms)
    most = size if size <= MOST_IN_ORDER else MOST_THIN
    sizes = np.array(thinned(num_bytes, work_ms, kept, most), dtype=np.intp)
    thin = len(sizes) - 1 < size
    what = f"all cuts of the {size} layers in the graph's order"
    if thin:
        what = f"{len(sizes) - 2} cuts of the {size} layers in the graph's order, thinned by time and bytes"
    return GraphCuts(
        order=np.arange(size),
        sizes=sizes,
        inside=None,
        spine=np.arange(len(sizes)),
        is_thin=thin,
        is_complete=not (thin or branches),
        description=what,
    )


def thinned(
    num_bytes: FloatArray, work_ms: FloatArray, kept: Sequence[int], most: int
) -> list[int]:
    """Return the rising sizes of at most `most` + 1 prefixes of an order, and of those that must be kept.

    Of the prefixes in each slice of the time, the one with the fewest bytes crossing stays, and of equals the
    first.
    """
    size = len(work_ms)
    if size <= most:
        return list(range(size + 1))
    done = np.concatenate([[0.0], np.cumsum(work_ms)])
    inner = np.arange(1, size)
    part = done[inner] / (done[-1] or 1.0)
    slices = np.minimum((part * (most - 1)).astype(int), most - 2)
    order = np.lexsort((inner, num_bytes[inner], slices))
    firsts = np.unique(slices[order], return_index=True)[1]
    near = (place for place in kept if 0 < place < size)
    return sorted({0, size, *inner[order][firsts].tolist(), *near})


def every_cut(units: Units, num_layers: int) -> GraphCuts | None:
    """Return all cuts of a graph's units; None if there are more than MOST_EVERY."""
    try:
        masks = ideals(len(units.layers), units.edges, MOST_EVERY + 1)
    except TooManyIdealsError:
        return None
    joined = (
        "" if len(units.layers) == num_layers else f", {len(units.layers)} after joining free ones"
    )
    text = f"all {len(masks)} ideals of the {num_layers} layers{joined}"
    order = few_bytes_order(units.output_bytes, units.targets)
    table = membership(masks, len(units.layers))
    return _family(units, table, order, text, num_layers, is_thin=False, is_complete=True)


def cuts_of_orders(
    units: Units, work_ms: FloatArray, num_layers: int, around: Sequence[int] = ()
) -> GraphCuts:
    """Return the prefixes of several topological orders of the units, thinned if they are many.

    Args:
        work_ms: (U,) of each unit.
        around: (U,) the stage of each unit in a plan: the orders then follow its stages, and prefixes close
            to its cuts stay.
    """
    size = len(units.layers)
    orders = [
        few_bytes_order(units.output_bytes, units.targets),
        late_order(units.output_bytes, units.sources),
        list(range(size)),
    ]
    if around:
        orders = [sorted(order, key=around.__getitem__) for order in orders]
    orders = [list(order) for order in dict.fromkeys(map(tuple, orders))]
    share = max(MOST_THIN // len(orders), 2)
    kept = close_to(around, len(orders))
    rows = []
    for order in orders:
        prefixes = np.tri(size + 1, size, -1, dtype=bool)
        places = thinned(_crossing_bytes(units, order), work_ms[order], kept, share)
        rows.append(np.empty((len(places), size), dtype=bool))
        rows[-1][:, order] = prefixes[places]
    table = np.unique(np.concatenate(rows), axis=0)
    thin = size > share
    text = (
        f"the {num_layers} layers contracted to {len(table)} cuts, the prefixes of {len(orders)} topological "
        f"orders{', thinned by time and bytes' if thin else ''}"
    )
    return _family(units, table, orders[0], text, num_layers, is_thin=thin, is_complete=False)


def close_to(stages: Sequence[int], num_orders: int = 1) -> tuple[int, ...]:
    """Return numbers of layers close to the cuts of a plan.

    Args:
        stages: the stage of each layer.
    """
    ends = np.cumsum(np.bincount(stages))[:-1].tolist() if stages else []
    reach = MOST_AROUND // (2 * num_orders * max(len(ends), 1))
    return tuple(end + step for end in ends for step in range(-reach, reach + 1))


def _crossing_bytes(units: Units, order: Sequence[int]) -> FloatArray:
    """Return (U + 1,) what crosses the cut behind each number of units of an order."""
    position = {unit: index for index, unit in enumerate(order)}
    change = np.zeros(len(order) + 1)
    for unit, targets in enumerate(units.targets):
        change[position[unit] + 1] += units.output_bytes[unit]
        change[max((position[t] for t in targets), default=len(order) - 1) + 1] -= (
            units.output_bytes[unit]
        )
    return np.cumsum(change)


def _family(
    units: Units,
    table: BoolArray,
    order: Sequence[int],
    description: str,
    num_layers: int,
    *,
    is_thin: bool,
    is_complete: bool,
) -> GraphCuts:
    """Return the cuts that the rows of (n + 1, U) say, with those among the prefixes of an order as spine."""
    inside = np.zeros((len(table), num_layers), dtype=bool)
    for unit, layers in enumerate(units.layers):
        inside[:, list(layers)] = table[:, unit, None]
    sizes = inside.sum(axis=1)
    packed = np.packbits(inside, axis=1)
    numbers = np.lexsort((*packed.T[::-1], sizes))
    inside, sizes, table = inside[numbers], sizes[numbers], table[numbers]
    position = np.empty(len(order), np.intp)
    position[list(order)] = np.arange(len(order))
    far = np.where(table, position, -1).max(axis=1) + 1
    spine = np.flatnonzero(far == table.sum(axis=1))
    return GraphCuts(
        order=np.arange(num_layers),
        sizes=sizes,
        inside=inside,
        spine=spine,
        is_thin=is_thin,
        is_complete=is_complete,
        description=description,
    )
