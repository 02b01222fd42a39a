"""Which option each node of a stage takes: the exact answer to a knapsack, for every number of micro-batches.

A stage's time is (alpha + beta (d - 1)) / d and its memory A y + B, where alpha, beta, A and B are sums over
its nodes' options. A front holds the choices that no other choice beats in time at one and at most replicas
and in memory at one and at most micro-batches in flight; all four are linear in between, so the front holds
a best choice for every d, every y and every memory limit.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stagewright.document import InputError

Floats = npt.NDArray[np.float64]

MOST_CHOICES = 20_000
_BLOCK = 1_000


@dataclass(frozen=True)
class Front:
    """Undominated choices of options, as differences to the plain options of all nodes."""

    alpha: Floats
    beta: Floats
    bytes_per_unit: Floats
    fixed_bytes: Floats
    options: npt.NDArray[np.int8]
    """(choices, nodes) in the order of the nodes that were added."""


@dataclass(frozen=True)
class Item:
    """One node's options as differences to its plain one: rows alpha, beta, A, B; a column per option."""

    node: int
    differences: tuple[tuple[float, ...], ...]


class Fronts:
    """Fronts of sequences of items, each made from the front of one item less and kept."""

    def __init__(self, most_replicas: int, most_units: int) -> None:
        self._most_replicas = most_replicas
        self._most_units = most_units
        zero = np.zeros(1)
        empty = Front(zero, zero, zero, zero, np.zeros((1, 0), np.int8))
        self._known: dict[tuple[Item, ...], Front] = {(): empty}

    def of(self, items: tuple[Item, ...]) -> Front:
        """Return the front of some items.

        Raises:
            InputError: there are more than MOST_CHOICES undominated choices.
        """
        known = len(items)
        while items[:known] not in self._known:
            known -= 1
        front = self._known[items[:known]]
        for end in range(known + 1, len(items) + 1):
            front = self._known[items[:end]] = self._extend(front, items[end - 1])
        return front

    def _extend(self, front: Front, item: Item) -> Front:
        alpha, beta, per_unit, fixed = np.array(item.differences)
        count = len(alpha)
        rows = len(front.alpha)
        option = np.repeat(np.arange(count, dtype=np.int8), rows)
        grown = Front(
            (front.alpha + alpha[:, None]).ravel(),
            (front.beta + beta[:, None]).ravel(),
            (front.bytes_per_unit + per_unit[:, None]).ravel(),
            (front.fixed_bytes + fixed[:, None]).ravel(),
            np.hstack([np.tile(front.options, (count, 1)), option[:, None]]),
        )
        kept = self._undominated(grown)
        if len(kept) > MOST_CHOICES:
            raise InputError(
                f"the recomputation choices of {len(grown.options[0])} nodes have more than {MOST_CHOICES} "
                "that no other beats; plan with --no-recomputation"
            )
        return Front(
            grown.alpha[kept],
            grown.beta[kept],
            grown.bytes_per_unit[kept],
            grown.fixed_bytes[kept],
            grown.options[kept],
        )

    def _undominated(self, front: Front) -> npt.NDArray[np.intp]:
        """Return the choices that no other is as good as in all four ways, of equal ones the first."""
        ways = np.column_stack(
            [
                front.alpha,
                front.alpha + front.beta * (self._most_replicas - 1),
                front.bytes_per_unit + front.fixed_bytes,
                front.bytes_per_unit * self._most_units + front.fixed_bytes,
            ]
        )
        ordered = np.lexsort(ways.T[::-1])
        kept = ordered[:0]
        # An earlier choice is never beaten by a later one, so blocks suffice to bound the comparison's size.
        for start in range(0, len(ordered), _BLOCK):
            block = ordered[start : start + _BLOCK]
            block = block[~_as_good(ways[kept], ways[block]).any(axis=0)]
            within = np.triu(_as_good(ways[block], ways[block]), k=1)
            kept = np.concatenate([kept, block[~within.any(axis=0)]])
        return kept


def _as_good(first: Floats, second: Floats) -> npt.NDArray[np.bool_]:
    """Return the (first, second) table of which first choice is in all ways as good as which second one."""
    table = np.ones((len(first), len(second)), bool)
    for way in range(first.shape[1]):
        table &= first[:, None, way] <= second[:, way]
    return table
