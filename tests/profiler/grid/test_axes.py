"""The points of a grid."""

import pytest

from stagewright.document import InputError
from stagewright.profiler.grid.axes import parse_axes


def test_ranges_include_their_end_and_contexts_may_be_multiples_of_the_length() -> None:
    axes = parse_axes(["layers=6,3", "width=64", "length=2:8:3,4", "context=0,5,2x"])
    assert list(axes.models()) == [(3, 64), (6, 64)]
    assert axes.length == (2, 5, 8, 4)
    slices = list(axes.slices())
    assert slices[:3] == [(2, 0), (2, 4), (2, 5)]
    assert slices[-3:] == [(8, 0), (8, 5), (8, 16)]
    assert list(parse_axes(["layers=1", "width=1", "length=1:3"]).slices()) == [
        (1, 0), (2, 0), (3, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["layers=1", "width=8"], "length is missing"),
        (["layers=1", "layers=2"], "expected each of layers=…, width=…"),
        (["depth=1"], "'depth=1'"),
        (["layers=0", "width=8", "length=4"], "layers has '0', expected numbers from 1"),
        (["layers=1", "width=8", "length=9:4"], "length has '9:4'"),
        (["layers=1", "width=8", "length=1:2:3:4"], "expected a number or a range"),
        (["layers=1", "width=8", "length=2x"], "length has '2x', expected a number"),
        (["layers=1", "width=8", "length=4", "context=²x"], "context has '²'"),
        (["layers=1:1000", "width=1:1000", "length=4"], "1000000 points, expected at most"),
    ],
)
def test_wrong_words_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_axes(words)
    assert said in str(caught.value)
