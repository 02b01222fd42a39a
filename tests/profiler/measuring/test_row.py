"""The repeats of one micro-batch size."""

from stagewright.profiler.measuring.row import interquartile_range


def test_the_spread_is_the_distance_between_the_quartiles() -> None:
    assert interquartile_range([1.0, 2.0, 3.0, 4.0, 100.0]) == 2.0
