"""Branching graphs are planned whole or contracted, and say so."""

from pathlib import Path

import pytest

from stagewright.optimizer.pipedream.hierarchical import HierarchicalRequest, plan_hierarchical
from stagewright.optimizer.pipedream.problem import Level
from stagewright.optimizer.pipedream.synthetic_graphs import GRAPHS


@pytest.mark.parametrize("name", ["resnet50-like", "inception-like", "nasnet-like"])
def test_a_contracted_graph_is_said_to_be_and_has_a_bound_that_holds(
    name: str, tmp_path: Path
) -> None:
    graph = GRAPHS[name]()
    graph.save(tmp_path / "graph.txt")
    found = {}
    for solver in ("pipedream", "exact"):
        request = HierarchicalRequest(
            graph_path=tmp_path / "graph.txt",
            levels=(Level(4, 25e9), Level(4, 3.125e9)),
            solver=solver,
            compression=1.0,
        )
        pipeline = plan_hierarchical(request)[0].pipeline
        assert ("contracted to a chain" in pipeline.space) == (not pipeline.cuts.complete)
        assert pipeline.cuts.complete == (name == "resnet50-like")
        assert 0.85 * pipeline.value_s <= pipeline.bound_s <= pipeline.value_s
        found[solver] = pipeline
    assert found["exact"].value_s <= found["pipedream"].value_s * (1 + 1e-9)
    assert found["exact"].bound_s <= found["pipedream"].value_s


def test_synthetic_graphs_are_as_large_as_their_models() -> None:
    sizes = {name: len(make().nodes) for name, make in GRAPHS.items()}
    assert 150 <= sizes["resnet50-like"] <= 250
    assert 200 <= sizes["inception-like"] <= 400
    assert 900 <= sizes["nasnet-like"] <= 1300
