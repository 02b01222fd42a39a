"""Metis's memory rule and how it shrinks capacities."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.optimizer.metis.memory import (
    memory_demand_mb,
    memory_per_layer_mb,
    shrunk_capacity,
)
from stagewright.optimizer.metis.problem import Span

from .problems import row_problem


def test_a_group_of_one_type_is_charged_five_times_one_device() -> None:
    problem = row_problem(1)
    ranks = problem.span(("V100", "A100"))
    per_layer = memory_per_layer_mb(problem, ranks, ranks.part(0, 16), (16, 1), 8)
    assert memory_demand_mb(per_layer, 0, 3) == 0.001 + 5 * (7820 + 2 * 4146)


def test_a_group_of_several_types_is_charged_for_replicas_of_the_whole_cluster() -> None:
    """16 samples on 8 replicas: 3 on each A100 one (two binary digits), 1 on each V100 one."""
    problem = row_problem(1)
    ranks = Span((("A100", 16), ("V100", 16)))
    per_layer = memory_per_layer_mb(problem, ranks, ranks.part(12, 8), (8, 1), 8)
    assert per_layer[1] == (4 * 2 + 4 * 1) * 4146


@given(
    st.lists(
        st.tuples(st.floats(0.05, 1), st.floats(1, 9), st.floats(1, 9)), min_size=2, max_size=6
    )
)
def test_stages_with_spare_memory_take_what_the_others_give(
    stages: list[tuple[float, float, float]],
) -> None:
    performance, capacity, demand = map(list, zip(*stages, strict=True))
    found = shrunk_capacity(performance, capacity, demand)
    if found is None:
        assert any(mine <= asked for mine, asked in zip(capacity, demand, strict=True))
        return
    for before, after, mine, asked in zip(performance, found, capacity, demand, strict=True):
        if mine > asked:
            assert after >= before
        else:
            assert after == pytest.approx(before * mine / asked * 0.9)
    assert abs(sum(found) - sum(performance)) <= 0.01 + 0.001 * len(stages)
