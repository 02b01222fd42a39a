"""The simulator against known formulas, hand figures and bounds that any run obeys."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from stagewright.cluster import Link
from stagewright.graph import LayerGraph, LayerNode
from stagewright.optimizer.assemble import Prediction, draft, predict
from stagewright.optimizer.costs.evaluate import score
from stagewright.optimizer.costs.footprint import units_of
from stagewright.optimizer.costs.tables import StageTables
from stagewright.optimizer.load import Inputs
from stagewright.optimizer.problem import Problem, StageChoice
from stagewright.optimizer.solvers.brute_force import every_plan

MakeLayer = Callable[..., LayerNode]
MakeGraph = Callable[..., LayerGraph]
MakeInputs = Callable[..., Inputs]
RandomInputs = Callable[..., Inputs]

FREE = Link(bandwidth_bytes_per_s=1e15, latency_ms=0.0)


@pytest.fixture
def chain(make_layer: MakeLayer, make_graph: MakeGraph) -> LayerGraph:
    """Three layers of 1 ms forward and 2 ms backward, without update."""
    layers = [make_layer("x", kind="input")]
    layers += [
        make_layer(f"l{i}", [f"l{i - 1}" if i else "x"], parameters=[(f"w{i}", 400)])
        for i in range(3)
    ]
    return make_graph(layers, update_ms=0.0)


def one_layer_each(inputs: Inputs, **options: object) -> Prediction:
    problem = Problem(
        inputs=inputs,
        microbatch_size=1,
        num_microbatches=5,
        **options,  # type: ignore[arg-type]
    )
    choices = [StageChoice(i, i + 1, (1,)) for i in range(3)]
    return predict(draft(StageTables(problem), choices), problem)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_balanced_stages_with_free_messages_take_m_plus_s_minus_1_turns(
    chain: LayerGraph, make_inputs: MakeInputs, schedule: str
) -> None:
    inputs = make_inputs([chain], [[("fast", 3)]], inside=FREE)
    prediction = one_layer_each(inputs, schedule=schedule)
    assert prediction.timeline.step_ms == pytest.approx((5 + 3 - 1) * 3)
    assert prediction.timeline.idle_share(0) == pytest.approx(2 / 7)
    assert prediction.score.value_ms == pytest.approx((5 + 3 - 1) * 3)


def test_gpipe_messages_delay_by_one_latency_per_border_and_direction(
    chain: LayerGraph, make_inputs: MakeInputs
) -> None:
    link = Link(bandwidth_bytes_per_s=1e15, latency_ms=0.5)
    inputs = make_inputs([chain], [[("fast", 3)]], inside=link)
    assert one_layer_each(inputs, schedule="gpipe").timeline.step_ms == pytest.approx(21 + 4 * 0.5)


def test_without_overlap_the_later_stage_waits_for_every_message(
    chain: LayerGraph, make_inputs: MakeInputs
) -> None:
    link = Link(bandwidth_bytes_per_s=1e15, latency_ms=0.5)
    inputs = make_inputs([chain], [[("fast", 3)]], inside=link)
    found = one_layer_each(inputs, schedule="gpipe", overlap="none")
    # Turns of 1.5 forward and 2.5 backward on the later stages; the first stage's are 1 and 2.
    assert found.timeline.step_ms == pytest.approx((1 + 6 * 1.5) + (6 * 2.5 + 2))
    assert found.timeline.messages == ()


@pytest.mark.parametrize("seed", range(6))
def test_no_step_beats_its_busiest_rank_or_link_and_rows_hold_no_more_than_counted(
    random_inputs: RandomInputs, seed: int
) -> None:
    inputs = random_inputs(seed, 3, [[("fast", 1), ("slow", 1)], [("slow", 1)]], 10**9)
    problem = Problem(inputs=inputs, microbatch_size=2, num_microbatches=5)
    tables = StageTables(problem)
    for choices in every_plan(tables, 0, (1, 1, 1)):
        prediction = predict(draft(tables, choices), problem)
        plan, timeline = prediction.plan, prediction.timeline
        assert len(timeline.ranks) == plan.num_ranks
        for rank, row in enumerate(timeline.ranks):
            assert 0 <= timeline.idle_share(rank) <= 1
            ends = [event.end_ms for event in row]
            assert all(a.end_ms <= b.start_ms for a, b in itertools.pairwise(row))
            assert ends == sorted(ends)
        assert max(message.end_ms for message in timeline.messages or timeline.ranks[0]) <= (
            timeline.step_ms
        )
        routes = plan.pipeline().routes
        for stage, content in enumerate(plan.stages):
            counts = [routes[stage].count(replica.rank) for replica in content.replicas]
            units = units_of(plan, stage, counts)
            for replica, most in zip(content.replicas, units, strict=True):
                assert plan.rows.units_in_flight(replica.rank, stage) <= most


@pytest.mark.parametrize("seed", range(4))
def test_the_closed_formula_is_near_the_simulator_for_single_stages(
    random_inputs: RandomInputs, seed: int
) -> None:
    inputs = random_inputs(seed, 4, [[("fast", 1), ("slow", 2)]], 10**9)
    problem = Problem(inputs=inputs, microbatch_size=2, num_microbatches=7)
    for devices in ((1, 0), (1, 2), (0, 2)):
        plan = draft(StageTables(problem), [StageChoice(0, 4, devices)])
        prediction = predict(plan, problem)
        assert score(plan, problem).value_ms == pytest.approx(prediction.timeline.step_ms)
        assert np.isfinite(prediction.plan.predicted_step_ms)
