"""Plans without flush: the best under the formula, with the memory of all versions of the weights."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.document import InputError
from stagewright.flushless import FLUSHLESS, versions_needed
from stagewright.graph import LayerGraph, LayerNode
from stagewright.optimizer.assemble import draft, predict
from stagewright.optimizer.constraints import NO_CONSTRAINTS
from stagewright.optimizer.costs.cost import versions_held
from stagewright.optimizer.costs.evaluate import score
from stagewright.optimizer.costs.tables import StageTables
from stagewright.optimizer.flushless import check_flushless, constraints_of
from stagewright.optimizer.load import Inputs
from stagewright.optimizer.problem import Problem, StageChoice
from stagewright.optimizer.solvers import brute_force, exact

MakeLayer = Callable[..., LayerNode]
MakeGraph = Callable[..., LayerGraph]
MakeInputs = Callable[..., Inputs]
RandomInputs = Callable[..., Inputs]


@pytest.mark.parametrize("schedule", FLUSHLESS)
@pytest.mark.parametrize("seed", range(8))
def test_no_plan_without_flush_is_better_than_the_exact_solver_s(
    random_inputs: RandomInputs, seed: int, schedule: str
) -> None:
    memory_bytes = (10**9, 6000, 4000, 2500)[seed % 4]
    cluster = [[("fast", 1), ("slow", 2)]] if seed % 2 else [[("fast", 2)], [("slow", 1)]]
    problem = Problem(
        inputs=random_inputs(seed, 3 + seed % 2, cluster, memory_bytes),
        microbatch_size=2,
        num_microbatches=3 + seed % 4,
        objective="throughput",
        schedule=schedule,
    )
    best, found = brute_force.solve(problem), exact.solve(problem)
    assert (best is None) == (found is None)
    if best is not None and found is not None:
        assert found.value_ms == pytest.approx(best.value_ms, rel=1e-8)
        assert not score(draft(StageTables(problem), found.stages), problem).overflows


@given(st.sampled_from(("1f1b", *FLUSHLESS)), st.integers(1, 50), st.integers(1, 20))
def test_the_cost_model_s_versions_are_those_of_the_schedule(
    schedule: str, units: int, count: int
) -> None:
    found = versions_held(schedule, np.array([units]), np.array([count]))
    assert found.tolist() == [versions_needed(schedule, units, count)]


def test_a_rank_holds_its_trained_weights_once_for_each_version(
    make_layer: MakeLayer, make_graph: MakeGraph, make_inputs: MakeInputs
) -> None:
    layers = [make_layer("x", kind="input")]
    layers += [
        make_layer(f"l{i}", [f"l{i - 1}" if i else "x"], parameters=[(f"w{i}", 4000)])
        for i in range(4)
    ]
    inputs = make_inputs([make_graph(layers)], [[("fast", 4)]])
    peaks = {}
    for schedule in ("1f1b", *FLUSHLESS):
        problem = Problem(
            inputs=inputs,
            microbatch_size=1,
            num_microbatches=2,
            objective="throughput",
            schedule=schedule,
        )
        choices = [StageChoice(i, i + 1, (1,)) for i in range(4)]
        stages = predict(draft(StageTables(problem), choices), problem).plan.stages
        peaks[schedule] = [stage.replicas[0].predicted.peak_bytes for stage in stages]
    # Four, three, two units and one in flight, two micro-batches per window: 1 + ceil((u - 1) / 2) versions.
    more = [a - b for a, b in zip(peaks["pipedream"], peaks["1f1b"], strict=True)]
    unit = [a - b for a, b in zip(peaks["pipedream-2bw"], peaks["pipedream"], strict=True)]
    assert more[2:] == [4000, 0]
    assert unit == [-4000, 0, 0, 4000]
    assert more[0] > 2 * 4000  # with flush it holds two of its four units only


def test_layers_that_share_a_parameter_are_kept_in_one_stage(
    make_layer: MakeLayer, make_graph: MakeGraph, make_inputs: MakeInputs
) -> None:
    shared = [("w", 40)]
    layers = [
        make_layer("x", kind="input"),
        make_layer("a", ["x"]),
        make_layer("b", ["a"], parameters=shared),
        make_layer("c", ["b"], parameters=shared),
        make_layer("d", ["c"]),
    ]
    inputs = make_inputs([make_graph(layers)], [[("fast", 4)]])
    assert constraints_of("1f1b", NO_CONSTRAINTS, inputs.model) == NO_CONSTRAINTS
    constraints = constraints_of("pipedream", NO_CONSTRAINTS, inputs.model)
    assert constraints.fixed is not None
    assert constraints.fixed.together == (("b", "c"),)
    problem = Problem(
        inputs=inputs,
        microbatch_size=1,
        num_microbatches=8,
        objective="throughput",
        schedule="pipedream",
        constraints=constraints,
    )
    found = exact.solve(problem)
    assert found is not None
    assert not any(stage.last == 2 for stage in found.stages)


def test_what_does_not_go_without_flush_is_refused() -> None:
    with pytest.raises(InputError, match="plan with --objective throughput"):
        check_flushless("pipedream", "step-time", "exact", ("exact",))
    with pytest.raises(InputError, match="--solver metis does not count versions of weights"):
        check_flushless("pipedream", "throughput", "metis", ("exact",))
