"""The cost of a plan by Metis's formula."""

from typing import Any

import pytest

from stagewright.optimizer.metis.cost import cost_of

from .problems import golden, plan_of, row_problem


@pytest.mark.parametrize("row", [1, 2])
def test_costs_and_their_parts_are_those_that_metis_computes(row: int) -> None:
    problem = row_problem(row)
    for content in golden("golden_costs.json")[f"row{row}"]:
        found = cost_of(problem, plan_of(content))
        parts: dict[str, Any] = content["components"]
        assert found.total == pytest.approx(content["cost"], rel=1e-9)
        assert found.stages == pytest.approx(parts["e"], rel=1e-9)
        expected = {
            "execution": parts["exec"],
            "outside_layers": parts["fb_sync"],
            "update": parts["update"],
            "all_reduce": parts["dp"],
            "messages": parts["pp"],
            "batch_generator": parts["batchgen"],
        }
        for name, value in expected.items():
            assert getattr(found, name) == pytest.approx(value, rel=1e-9), name


def test_the_best_executable_plan_of_row_2_costs_what_was_published() -> None:
    content = {
        "ns": ["A100", "V100"],
        "dg": [64],
        "num_stage": 1,
        "B": 1,
        "st": [[2, 32]],
        "part": [0, 20],
    }
    assert cost_of(row_problem(2), plan_of(content)).total == pytest.approx(2347.1168, abs=1e-4)
