"""What is written for a plan of a text graph."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stagewright.optimizer.pipedream.hierarchical import HierarchicalRequest, plan_hierarchical
from stagewright.optimizer.pipedream.output import Planned, dot_source, plan_of, staged_graph
from stagewright.optimizer.pipedream.problem import Level
from stagewright.pipedream_graph import TextGraph
from stagewright.value import tensors_of

MakeGraph = Callable[[int, int], TextGraph]


@pytest.fixture
def planned(tmp_path: Path, random_branching: MakeGraph) -> Planned:
    random_branching(7, 10).save(tmp_path / "graph.txt")
    request = HierarchicalRequest(
        graph_path=tmp_path / "graph.txt",
        levels=(Level(2, 1e9), Level(2, 1e8)),
        solver="exact",
        compression=1.0,
    )
    return plan_hierarchical(request)[1]


def test_no_layer_is_in_an_earlier_stage_than_what_it_takes(planned: Planned) -> None:
    staged = staged_graph(planned.graph, planned.pipeline)
    stages = {node.name: node.stage for node in staged.nodes}
    assert all((stages[s] or 0) <= (stages[t] or 0) for s, t in staged.edges)
    assert staged.edges == planned.graph.edges


def test_the_plan_sends_what_crosses_its_cuts(planned: Planned, tmp_path: Path) -> None:
    plan = plan_of(planned, tmp_path / "plan.json")
    cuts = planned.pipeline.cuts
    assert len(plan.stages) > 1
    for number, stage in enumerate(planned.pipeline.stages[:-1]):
        crossing = {
            value.layer: sum(tensor.bytes_at(1) for tensor in tensors_of(value.spec))
            for border in plan.borders
            if border.source <= number < border.target
            for value in border.values
        }
        # What nothing uses is what the model returns; the formula knows no returned values.
        used = {source for source, _ in planned.graph.edges}
        num_bytes = sum(size for layer, size in crossing.items() if layer in used)
        assert num_bytes == cuts.crossing_bytes[stage.last]
    assert plan.predicted_step_ms >= plan.proof.value * plan.num_microbatches * 0.5
    assert plan.sources[0].path == "graph.txt"


def test_the_picture_has_every_layer_and_edge(planned: Planned) -> None:
    source = dot_source(staged_graph(planned.graph, planned.pipeline))
    assert source.count(" -> ") == len(planned.graph.edges)
    assert source.count("fillcolor=") == len(planned.graph.nodes)
