"""The report of a profile: where the layers do not add up to the whole, it says by how much and why."""

import pytest

from stagewright.profiler.report import why_sums_differ


@pytest.mark.parametrize(
    ("ratio", "share", "expected"),
    [
        (1.02, 0.9, None),
        (1.08, 0.7, "add up to 8.0% more than the whole: launching operators (70% of the layers"),
        (0.95, None, "add up to 5.0% less than the whole: launching operators and clocks"),
        (1.08, 0.01, "more than the whole: launching operators is no reason (1% of the layers"),
    ],
)
def test_a_sum_beyond_three_percent_is_explained(
    ratio: float, share: float | None, expected: str | None
) -> None:
    row = {"batch_size": 2, "sum_over_whole": ratio, "launch_share": share}
    lines = why_sums_differ([row])
    assert len(lines) == (expected is not None)
    assert expected is None or expected in lines[0]
