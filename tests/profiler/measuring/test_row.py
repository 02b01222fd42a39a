"""The repeats of one micro-batch size."""

from stagewright.profiler.measuring.row import interquartile_range, steady_scales


def test_the_spread_is_the_distance_between_the_quartiles() -> None:
    assert interquartile_range([1.0, 2.0, 3.0, 4.0, 100.0]) == 2.0


def test_a_repeat_in_which_the_machine_was_slower_counts_as_the_others() -> None:
    assert steady_scales([3.0, 6.0, 3.0, 1.5]) == [1.0, 0.5, 1.0, 2.0]
