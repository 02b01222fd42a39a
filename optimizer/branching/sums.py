"""Sums over all stages at once: tables whose entry [p, q] belongs to the layers between the cuts p and q.

Entries of cuts that are not nested mean nothing. Layers are numbered as in the chain; number L stands for the
end of the model, which is in the stage that ends at the last cut.

Of a chain of cuts, the stages for which something counts are rectangles of the table: their corners are
added, and summed up once. Of other cuts, the stages in which nothing of a set is are those before and behind
which the same members of the set are: a product of two tables of marks per set.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .cuts import BoolArray, FloatArray, GraphCuts

NOWHERE = -1
"""In place of the layer that makes a value: it is there before every stage."""


@dataclass(frozen=True)
class Counted:
    """An amount that counts once for every stage with one of some layers."""

    amount: float
    layers: tuple[int, ...]
    """Rising, at least one; for a value, those that use it."""
    made: int = NOWHERE
    """The layer that makes it: it counts only for stages behind."""


class StageSums:
    """Sums for the cuts of one graph."""

    def __init__(self, cuts: GraphCuts) -> None:
        self.cuts = cuts
        self.size = len(cuts) - 1
        """n: the number of the last cut."""

    def once(self, counted: Iterable[Counted]) -> FloatArray:
        """Return the amounts of what some layer between the cuts is of, fast where that is one layer."""
        values, several = np.zeros(self.cuts.num_layers), []
        for one in counted:
            if one.made == NOWHERE and len(one.layers) == 1 and one.layers[0] < len(values):
                values[one.layers[0]] += one.amount
            else:
                several.append(one)
        sums = self.cuts.sums(values)
        table = np.maximum(sums[None, :] - sums[:, None], 0.0)
        return table + self.any_of(several) if several else table

    def any_of(self, counted: Iterable[Counted]) -> FloatArray:
        """Return the amounts of what some layer between the cuts is of, and that was made before."""
        if self.cuts.is_chain:
            return self._any_in_chain(counted)
        return self._any_in_family(counted)

    def any_taken(self, amount: float, makers: Mapping[int, Sequence[int]]) -> FloatArray:
        """Return an amount where some layer between the cuts takes something of the makers before them.

        Args:
            makers: by the layer that takes it.
        """
        if not self.cuts.is_chain:
            member, product = self._member, _Product(self.size + 1)
            users = np.array(list(makers))
            made = [member[:, list(own)].any(axis=1) for own in makers.values()]
            takes = np.stack(made, axis=1) & ~member[:, users]
            pattern = _patterns(takes)
            for number in range(pattern.max() + 1):
                rows = pattern == number
                takers = users[takes[rows.argmax()]]
                product.add(amount, rows, np.asarray(member[:, takers].any(axis=1)))
            return product.table
        first, entry = np.full(self.size + 1, self.size + 1), self.cuts.entry
        for user, own in makers.items():
            rows = slice(min(entry[maker] for maker in own), entry[user])
            first[rows] = np.minimum(first[rows], entry[user])
        return np.asarray(amount * (np.arange(self.size + 1)[None, :] >= first[:, None]))

    def sent(self, values: Iterable[Counted]) -> FloatArray:
        """Return the amounts of values made between the cuts and used behind them."""
        if not self.cuts.is_chain:
            product = _Product(self.size + 1)
            for value in values:
                makes, rest = self._member[:, value.made], self._member[:, list(value.layers)]
                product.add(value.amount, ~makes, makes & ~rest.all(axis=1))
            return product.table
        corners, entry = self._corners(), self.cuts.entry
        for value in values:
            made, last = entry[value.made], max(entry[layer] for layer in value.layers)
            _add(corners, (0, made), (made, last), value.amount)
        return _summed(corners)

    def all_of(self, counted: Iterable[Counted]) -> FloatArray:
        """Return the amounts of what all layers of are between the cuts."""
        if not self.cuts.is_chain:
            product = _Product(self.size + 1)
            for one in counted:
                held = self._member[:, list(one.layers)]
                before, behind = held.any(axis=1), held.all(axis=1)
                product.add(one.amount, np.logical_not(before), np.asarray(behind))
            return product.table
        corners, entry = self._corners(), self.cuts.entry
        for one in counted:
            found = [entry[layer] for layer in one.layers]
            _add(corners, (0, min(found)), (max(found), self.size + 1), one.amount)
        return _summed(corners)

    def _any_in_chain(self, counted: Iterable[Counted]) -> FloatArray:
        corners, entry = self._corners(), self.cuts.entry
        for one in counted:
            if not one.amount:
                continue
            start = 0 if one.made == NOWHERE else int(entry[one.made])
            for cut in sorted({int(entry[layer]) for layer in one.layers}):
                if cut > start:
                    _add(corners, (start, cut), (cut, self.size + 1), one.amount)
                    start = cut
        return _summed(corners)

    def _any_in_family(self, counted: Iterable[Counted]) -> FloatArray:
        rows = self.size + 1
        product, base = _Product(rows), np.zeros(rows)
        for one in counted:
            if not one.amount:
                continue
            there = np.ones(rows, dtype=bool)
            if one.made != NOWHERE:
                there = self._member[:, one.made]
            base += one.amount * there
            pattern = _patterns(self._member[:, list(one.layers)])
            for number in range(pattern.max() + 1):
                same = pattern == number
                product.add(one.amount, there & same, same)
        return np.maximum(base[:, None] - product.table, 0.0)

    def _corners(self) -> FloatArray:
        return np.zeros((self.size + 2, self.size + 2))

    @cached_property
    def _member(self) -> BoolArray:
        """(n + 1, L + 1) which layers, and whether the end, are before each cut."""
        assert self.cuts.inside is not None
        end = np.arange(self.size + 1) == self.size
        return np.concatenate([self.cuts.inside, end[:, None]], axis=1)


def _add(
    corners: FloatArray, rows: tuple[int, int], columns: tuple[int, int], amount: float
) -> None:
    """Add an amount to a rectangle of the table to come; ends are exclusive."""
    if rows[0] < rows[1] and columns[0] < columns[1]:
        corners[rows[0], columns[0]] += amount
        corners[rows[1], columns[0]] -= amount
        corners[rows[0], columns[1]] -= amount
        corners[rows[1], columns[1]] += amount


def _summed(corners: FloatArray) -> FloatArray:
    for row in range(1, len(corners)):  # By whole rows: a cumulative sum down columns is slow.
        corners[row] += corners[row - 1]
    return np.asarray(np.maximum(corners.cumsum(axis=1)[:-1, :-1], 0.0))


def _patterns(member: BoolArray) -> np.ndarray:
    """Return a number per row of (n + 1, k) marks, from 0, the same for the same marks."""
    if member.shape[1] == 1:
        return member[:, 0].astype(np.intp)
    packed = np.ascontiguousarray(np.packbits(member, axis=1))
    found = np.unique(packed.view([("", packed.dtype)] * packed.shape[1]), return_inverse=True)[1]
    return np.asarray(found).reshape(-1)


class _Product:
    """A sum of amount x before[p] x behind[q], with equal pairs of marks taken together."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._amounts: dict[tuple[bytes, bytes], float] = {}

    def add(self, amount: float, before: BoolArray, behind: BoolArray) -> None:
        if amount and before.any() and behind.any():
            key = (np.packbits(before).tobytes(), np.packbits(behind).tobytes())
            self._amounts[key] = self._amounts.get(key, 0.0) + amount

    @property
    def table(self) -> FloatArray:
        if not self._amounts:
            return np.zeros((self._rows, self._rows))
        before, behind = (self._marks([key[side] for key in self._amounts]) for side in (0, 1))
        amounts = np.array(list(self._amounts.values()))
        return np.asarray((amounts[:, None] * before).T @ behind)

    def _marks(self, packed: Sequence[bytes]) -> FloatArray:
        rows = np.frombuffer(b"".join(packed), dtype=np.uint8).reshape(len(packed), -1)
        return np.unpackbits(rows, axis=1)[:, : self._rows].astype(np.float64)
