"""Sums over stages are judged by adding up what each pair of nested cuts holds, layer by layer."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stagewright.optimizer.branching.cuts import GraphCuts
from stagewright.optimizer.branching.sums import NOWHERE, Counted, StageSums


@st.composite
def families(draw: st.DrawFn) -> GraphCuts:
    """Cuts of up to seven layers: some prefixes of one order, or prefixes of two orders."""
    size = draw(st.integers(1, 7))
    orders = [draw(st.permutations(range(size))) for _ in range(draw(st.integers(1, 2)))]
    inner = draw(st.sets(st.integers(1, max(size - 1, 1)))) if size > 1 else set()
    sizes = np.array(sorted({0, size, *inner}))
    if len(orders) == 1:
        return _cuts(np.array(orders[0]), sizes, None)
    rows = {tuple(i in order[:k] for i in range(size)) for order in orders for k in sizes.tolist()}
    inside = np.array(sorted(rows, key=lambda row: (sum(row), row)))
    return _cuts(np.arange(size), inside.sum(axis=1), inside)


def _cuts(order: np.ndarray, sizes: np.ndarray, inside: np.ndarray | None) -> GraphCuts:
    return GraphCuts(
        order=order,
        sizes=sizes,
        inside=inside,
        spine=np.arange(0),
        is_thin=False,
        is_complete=False,
        description="",
    )


@settings(max_examples=60)
@given(families(), st.data())
def test_sums_are_those_of_the_layers_between_cuts(cuts: GraphCuts, data: st.DataObject) -> None:
    size, end = cuts.num_layers, len(cuts) - 1
    some = st.sets(st.integers(0, size), min_size=1).map(lambda found: tuple(sorted(found)))
    amounts = st.integers(0, 5).map(float)
    counted = data.draw(st.lists(st.builds(Counted, amounts, some), max_size=4))
    made = st.integers(0, size - 1)
    values = data.draw(st.lists(st.builds(Counted, amounts, some, made), max_size=4))
    sums = StageSums(cuts)
    once, every = sums.once(counted), sums.all_of(counted)
    received, sent = sums.any_of(values), sums.sent(values)
    for first, last in zip(*np.nonzero(cuts.nested), strict=True):
        held = {*cuts.held(first, last), *([size] if last == end else [])}
        before = set(cuts.held(0, first))
        behind = set(range(size + 1)) - held - before
        assert once[first, last] == sum(c.amount for c in counted if held & {*c.layers})
        assert every[first, last] == sum(c.amount for c in counted if held >= {*c.layers})
        assert received[first, last] == sum(
            v.amount for v in values if v.made in before and held & {*v.layers}
        )
        assert sent[first, last] == sum(
            v.amount for v in values if v.made in held and behind & {*v.layers}
        )


def test_a_value_made_nowhere_is_there_before_the_first_stage() -> None:
    sums = StageSums(_cuts(np.arange(3), np.arange(4), None))
    assert sums.any_of([Counted(2.0, (0, 2), NOWHERE)])[0].tolist() == [0, 2, 2, 2]


def test_a_value_that_more_than_eight_layers_take_counts_once_for_each_stage() -> None:
    inside = np.tril(np.ones((12, 11), dtype=bool), -1)
    sums = StageSums(_cuts(np.arange(11), np.arange(12), inside))
    received = sums.any_of([Counted(2.0, tuple(range(1, 11)), 0)])
    assert received[1, 2:].tolist() == [2.0] * 10
    assert received[0, 1:].tolist() == [0.0] * 11


@settings(max_examples=60)
@given(families(), st.data())
def test_what_is_taken_of_makers_before_a_stage_counts_once(
    cuts: GraphCuts, data: st.DataObject
) -> None:
    size, end = cuts.num_layers, len(cuts) - 1
    some = st.sets(st.integers(0, size - 1), min_size=1, max_size=3)
    makers = data.draw(st.dictionaries(st.integers(0, size), some.map(sorted), min_size=1))
    found = StageSums(cuts).any_taken(2.0, makers)
    for first, last in zip(*np.nonzero(cuts.nested), strict=True):
        held = {*cuts.held(first, last), *([size] if last == end else [])}
        before = set(cuts.held(0, first))
        is_taken = any(before.intersection(own) for user, own in makers.items() if user in held)
        assert found[first, last] == 2.0 * is_taken
