"""The parts of a stage's backward: what was measured for the layers that received values lead to."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from stagewright.graph import LayerGraph, LayerNode
from stagewright.optimizer.assemble import draft, predict
from stagewright.optimizer.costs.tables import StageTables
from stagewright.optimizer.load import Inputs
from stagewright.optimizer.problem import Problem, StageChoice
from stagewright.optimizer.simulation.simulate import simulate
from stagewright.plan import Plan
from stagewright.scheduling import make_schedule

MakeLayer = Callable[..., LayerNode]
MakeGraph = Callable[..., LayerGraph]
MakeInputs = Callable[..., Inputs]


def measured(layer: LayerNode, input_ms: float | None) -> LayerNode:
    return layer.replace(
        costs=tuple(
            cost.replace(
                input_gradient_ms=input_ms,
                weight_gradient_ms=None if input_ms is None else cost.backward_ms - input_ms,
            )
            for cost in layer.costs
        )
    )


@pytest.fixture
def plan_of(
    make_layer: MakeLayer, make_graph: MakeGraph, make_inputs: MakeInputs
) -> Callable[..., tuple[Plan, Inputs]]:
    """Return what plans two stages: a, b | c, side, d; side takes the input, and d takes c and side."""

    def make(
        input_ms: Sequence[float | None] = (0.0, 0.75, 0.5, 1.25),
        *,
        tied: tuple[tuple[str, ...], ...] = (),
        recompute: bool = False,
        **options: Any,
    ) -> tuple[Plan, Inputs]:
        layers = [make_layer("x", kind="input")]
        before = {"a": ["x"], "b": ["a"], "c": ["b"], "d": ["c", "side"]}
        for (name, taken), part_ms in zip(before.items(), input_ms, strict=True):
            if name == "d":
                side = make_layer("side", ["x"], backward_ms=1.0, parameters=[("ws", 400)])
                layers.append(measured(side, 0.0))
            layers.append(
                measured(make_layer(name, taken, parameters=[(f"w{name}", 400)]), part_ms)
            )
        inputs = make_inputs([make_graph(layers, tied=tied, update_ms=0.0)], [[("fast", 2)]])
        problem = Problem(inputs=inputs, microbatch_size=1, num_microbatches=2, **options)
        choices = [StageChoice(0, 2, (1,)), StageChoice(2, 5, (1,), recompute=recompute)]
        return predict(draft(StageTables(problem), choices), problem).plan, inputs

    return make


def parts_of(plan: Plan) -> list[tuple[float | None, float | None]]:
    predicted = (stage.replicas[0].predicted for stage in plan.stages)
    return [(p.backward_input_ms, p.backward_weight_ms) for p in predicted]


def test_what_no_received_value_leads_to_is_of_the_weights(plan_of: Any) -> None:
    plan, _ = plan_of()
    assert parts_of(plan) == [(0.0, 4.0), (0.5 + 1.25, 0.5 + 1.0 + (2 - 1.25) + 1.0)]


def test_a_stage_that_recomputes_does_so_before_the_part_of_the_inputs(plan_of: Any) -> None:
    plan, _ = plan_of(recompute=True)
    assert parts_of(plan)[1] == (1.75 + 3.0, 3.25)


def test_layers_that_share_a_parameter_leave_nothing_for_later(plan_of: Any) -> None:
    plan, _ = plan_of(tied=(("wc", "wd"),))
    assert parts_of(plan)[1] == (5.0, 0.0)


def test_parts_that_were_not_measured_are_half_the_backward_each(plan_of: Any) -> None:
    plan, _ = plan_of((None, None, 0.5, None))
    assert parts_of(plan)[1] == (None, None)
    predicted = plan.stages[1].replicas[0].predicted
    assert [predicted.action_ms(kind) for kind in "FBIW"] == [3.0, 5.0, 2.5, 2.5]


def test_the_simulator_plays_the_measured_parts(plan_of: Any) -> None:
    plan, inputs = plan_of()
    rows = make_schedule("zero-bubble", plan.pipeline())
    timeline = simulate(plan, inputs.cluster, [[0], [1]], rows=rows)
    spent = {str(e.what): e.end_ms - e.start_ms for rank in timeline.ranks for e in rank}
    assert [spent[f"1{kind}0"] for kind in "FIW"] == pytest.approx([3.0, 1.75, 3.25])
    assert spent["0B0"] == pytest.approx(4.0)


def test_inference_has_no_parts(plan_of: Any) -> None:
    plan, _ = plan_of(objective="latency", schedule="forward")
    assert parts_of(plan) == [(None, None), (None, None)]
