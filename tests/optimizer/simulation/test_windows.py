"""Simulated runs without flush against what is known of them."""

from collections import Counter
from collections.abc import Callable

import pytest

from stagewright.cluster import Link
from stagewright.flushless import FLUSHLESS
from stagewright.graph import LayerGraph, LayerNode
from stagewright.optimizer.assemble import Prediction, draft, predict
from stagewright.optimizer.costs.tables import StageTables
from stagewright.optimizer.load import Inputs
from stagewright.optimizer.problem import Problem, StageChoice
from stagewright.optimizer.simulation.windows import STEADY_WINDOWS
from stagewright.optimizer.solvers.brute_force import every_plan
from stagewright.scheduling import windows_to_fill

MakeLayer = Callable[..., LayerNode]
MakeGraph = Callable[..., LayerGraph]
MakeInputs = Callable[..., Inputs]
RandomInputs = Callable[..., Inputs]

FREE = Link(bandwidth_bytes_per_s=1e15, latency_ms=0.0)


def chain(make_layer: MakeLayer, make_graph: MakeGraph, update_ms: float) -> LayerGraph:
    """Three layers of 1 ms forward and 2 ms backward."""
    layers = [make_layer("x", kind="input")]
    layers += [
        make_layer(f"l{i}", [f"l{i - 1}" if i else "x"], parameters=[(f"w{i}", 400)])
        for i in range(3)
    ]
    return make_graph(layers, update_ms=update_ms)


def one_layer_each(inputs: Inputs, schedule: str, num_microbatches: int) -> Prediction:
    problem = Problem(
        inputs=inputs,
        microbatch_size=1,
        num_microbatches=num_microbatches,
        schedule=schedule,
        objective="throughput",
    )
    choices = [StageChoice(i, i + 1, (1,)) for i in range(3)]
    return predict(draft(StageTables(problem), choices), problem)


@pytest.mark.parametrize("schedule", FLUSHLESS)
@pytest.mark.parametrize("num_microbatches", [3, 5, 8])
def test_balanced_stages_have_no_bubble(
    make_layer: MakeLayer,
    make_graph: MakeGraph,
    make_inputs: MakeInputs,
    schedule: str,
    num_microbatches: int,
) -> None:
    graph = chain(make_layer, make_graph, update_ms=0.0)
    inputs = make_inputs([graph], [[("fast", 3)]], inside=FREE)
    prediction = one_layer_each(inputs, schedule, num_microbatches)
    assert prediction.timeline.step_ms == pytest.approx(3 * num_microbatches)
    assert prediction.score.value_ms == pytest.approx(3 * num_microbatches)
    for rank in range(3):
        assert prediction.timeline.idle_share(rank) == pytest.approx(0, abs=1e-9)
    flushed = one_layer_each(inputs, "1f1b", num_microbatches)
    assert flushed.timeline.step_ms == pytest.approx(3 * (num_microbatches + 2))


def test_every_stage_updates_once_per_window(
    make_layer: MakeLayer, make_graph: MakeGraph, make_inputs: MakeInputs
) -> None:
    graph = chain(make_layer, make_graph, update_ms=1.5)
    inputs = make_inputs([graph], [[("fast", 3)]], inside=FREE)
    prediction = one_layer_each(inputs, "pipedream", 4)
    windows = 2 * windows_to_fill(prediction.plan.pipeline()) + STEADY_WINDOWS
    for events in prediction.timeline.ranks:
        counts = Counter(event.what if event.what == "update" else "action" for event in events)
        assert counts == {"update": windows, "action": 2 * 4 * windows}
    assert prediction.timeline.step_ms == pytest.approx(4 * 3 + 0.5)


@pytest.mark.parametrize("seed", range(6))
def test_no_steady_step_is_shorter_than_its_busiest_rank(
    random_inputs: RandomInputs, seed: int
) -> None:
    inputs = random_inputs(seed, 3, [[("fast", 1), ("slow", 2)]], 10**9)
    problem = Problem(
        inputs=inputs,
        microbatch_size=2,
        num_microbatches=4,
        schedule=FLUSHLESS[seed % 2],
        objective="throughput",
    )
    tables = StageTables(problem)
    for choices in every_plan(tables, 0, (1, 2)):
        prediction = predict(draft(tables, choices), problem)
        route = prediction.plan.pipeline().routes
        for stage, content in enumerate(prediction.plan.stages):
            for replica in content.replicas:
                own = replica.predicted
                busy_ms = route[stage].count(replica.rank) * (own.forward_ms + own.backward_ms)
                busy_ms += own.reduce_ms + own.update_ms
                assert prediction.timeline.step_ms >= busy_ms * (1 - 1e-9)
