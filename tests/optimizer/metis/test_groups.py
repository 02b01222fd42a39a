"""Device groups: counts of Metis's own search, and what a group may be."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.optimizer.metis.groups import device_groups

COUNTS = {
    (8, 8, 1, 4): {1: 1, 2: 1, 3: 3, 4: 1, 5: 7, 6: 6, 7: 4, 8: 1},
    (16, 10, 1, 4): {1: 1, 2: 1, 4: 1, 6: 6, 7: 4, 8: 1, 9: 31, 10: 34},
    (16, 10, 1, 6): {1: 1, 2: 1, 4: 1, 6: 15, 7: 4, 8: 1, 9: 125, 10: 105},
    (32, 10, 1, 128): {1: 1, 2: 1, 4: 1, 7: 7, 8: 1},
    (64, 20, 1, 128): {1: 1, 2: 1, 4: 1, 8: 1, 13: 299, 14: 91, 15: 15, 16: 1},
    (128, 20, 1, 128): {1: 1, 2: 1, 4: 1, 8: 1, 15: 15, 16: 1},
    (256, 40, 1, 999): {1: 1, 2: 1, 4: 1, 8: 1, 16: 1, 29: 3683, 30: 435, 31: 31, 32: 1},
}  # fmt: skip


@pytest.mark.parametrize("case", COUNTS)
def test_there_are_as_many_groups_as_in_metis(case: tuple[int, int, int, int]) -> None:
    num_devices, num_layers, scale, length = case
    found = {
        stages: sum(1 for _ in device_groups(stages, num_devices, scale, length))
        for stages in range(1, min(num_devices, num_layers) + 1)
    }
    assert {stages: count for stages, count in found.items() if count} == COUNTS[case]


@pytest.mark.parametrize(("case", "total"), [((32, 10), 3072)])
def test_a_smaller_scale_allows_more_groups(case: tuple[int, int], total: int) -> None:
    num_devices, num_layers = case
    groups = (device_groups(stages, num_devices, 0.5, 10) for stages in range(1, num_layers + 1))
    assert sum(1 for _ in itertools.chain.from_iterable(groups)) == total


@given(st.integers(1, 6), st.integers(1, 12))
def test_without_limits_every_composition_into_powers_of_two_comes_once(
    num_stages: int, num_devices: int
) -> None:
    expected = {
        sizes
        for sizes in itertools.product((1, 2, 4, 8), repeat=num_stages)
        if sum(sizes) == num_devices
    }
    found = Counter(device_groups(num_stages, num_devices, 1e-9, 100))
    assert found == Counter(expected)
