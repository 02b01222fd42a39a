"""Ideals are judged by looking at every subset."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.optimizer.ideals import (
    TooManyIdealsError,
    ideals,
    members,
    membership,
    subsets_of,
)


@given(st.data())
def test_ideals_are_the_subsets_that_hold_all_predecessors(data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 6))
    pairs = list(itertools.combinations(range(size), 2))
    edges = data.draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    expected = {
        mask
        for mask in range(1 << size)
        if all(mask >> before & 1 or not mask >> after & 1 for before, after in edges)
    }
    found = ideals(size, edges, most=1 << size)
    assert set(found) == expected and len(found) == len(expected)
    sizes = [mask.bit_count() for mask in found]
    assert sizes == sorted(sizes)


def test_subsets_are_found_by_membership() -> None:
    masks = ideals(4, [(0, 1), (2, 3)], most=100)
    table = membership(masks, 4)
    for row, mask in enumerate(masks):
        expected = [other for other in range(row + 1) if masks[other] & ~mask == 0]
        assert subsets_of(row, table).tolist() == expected


def test_members_are_ascending() -> None:
    assert members(0b101001) == (0, 3, 5)


def test_too_many_ideals_are_refused() -> None:
    with pytest.raises(TooManyIdealsError, match="more than 50"):
        ideals(8, [], most=50)


def test_a_huge_graph_is_refused_at_once() -> None:
    with pytest.raises(TooManyIdealsError, match="1000000 nodes"):
        ideals(10**6, [], most=5000)


def test_a_cycle_is_refused() -> None:
    with pytest.raises(ValueError, match="cycle"):
        ideals(3, [(0, 1), (1, 2), (2, 1)], most=50)
