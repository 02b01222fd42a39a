"""Fronts of options are judged by looking at every choice."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagewright.document import InputError
from stagewright.optimizer.formats import options
from stagewright.optimizer.formats.options import Fronts, Item

NUMBERS = st.integers(-3, 6).map(float)


@st.composite
def items(draw: st.DrawFn, node: int) -> Item:
    count = draw(st.integers(1, 3))
    rows = [[0.0] + [draw(NUMBERS) for _ in range(count - 1)] for _ in range(4)]
    return Item(node, tuple(tuple(row) for row in rows))


@settings(max_examples=50)
@given(st.data())
def test_a_front_holds_a_best_choice_for_all_replicas_units_and_limits(data: st.DataObject) -> None:
    most_replicas, most_units = 4, 5
    drawn = tuple(data.draw(items(node)) for node in range(data.draw(st.integers(0, 4))))
    front = Fronts(most_replicas, most_units).of(drawn)
    tables = [np.array(item.differences) for item in drawn]
    every = itertools.product(*(range(table.shape[1]) for table in tables))
    sums = np.array(
        [
            sum((table[:, o] for table, o in zip(tables, choice, strict=True)), np.zeros(4))
            for choice in every
        ]
    )
    for d, y in itertools.product(range(1, most_replicas + 1), range(1, most_units + 1)):
        for limit in (-4, 0, 5, 20, 100):
            fits = sums[:, 2] * y + sums[:, 3] <= limit
            expected = np.where(fits, sums[:, 0] + sums[:, 1] * (d - 1), np.inf).min()
            kept = front.bytes_per_unit * y + front.fixed_bytes <= limit
            time = np.where(kept, front.alpha + front.beta * (d - 1), np.inf)
            assert time.min() == expected
    for row, choice in enumerate(front.options):
        total = sum((table[:, o] for table, o in zip(tables, choice, strict=True)), np.zeros(4))
        assert front.alpha[row] == total[0] and front.fixed_bytes[row] == total[3]


def test_too_many_choices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "MOST_CHOICES", 10)
    drawn = tuple(
        Item(node, ((0.0, 2.0**node), (0.0, 0.0), (0.0, -(2.0**node)), (0.0, 0.0)))
        for node in range(4)
    )
    with pytest.raises(InputError, match="--no-recomputation"):
        Fronts(1, 1).of(drawn)
