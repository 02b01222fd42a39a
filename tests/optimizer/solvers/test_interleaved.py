"""The search for interleaved plans against all cuts and orders; memory against the rows."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from stagewright.document import InputError
from stagewright.graph import LayerCost
from stagewright.optimizer.assemble import Prediction, draft, predict
from stagewright.optimizer.costs.footprint import peak_bytes, units_of
from stagewright.optimizer.costs.tables import StageTables
from stagewright.optimizer.given import GivenStages
from stagewright.optimizer.load import Inputs
from stagewright.optimizer.problem import Problem, StageChoice
from stagewright.optimizer.solvers import interleaved
from stagewright.plan import Plan

RandomInputs = Callable[..., Inputs]


def problem_of(random_inputs: RandomInputs, seed: int, **choices: object) -> Problem:
    inputs = random_inputs(seed, 7, [[("fast", 1), ("slow", 1)]], 10**9)
    return Problem(
        inputs=inputs,
        microbatch_size=2,
        num_microbatches=5,
        schedule="interleaved",
        **choices,  # type: ignore[arg-type]
    )


def every_plan(problem: Problem, stages_per_rank: int) -> Iterator[Prediction]:
    """Predict every cut and both orders of the two devices."""
    tables = StageTables(problem)
    for order in ([(1, 0), (0, 1)], [(0, 1), (1, 0)]):
        devices = order * stages_per_rank
        for cuts in itertools.combinations(range(1, tables.size), len(devices) - 1):
            edges = (0, *cuts, tables.size)
            choices = tuple(map(StageChoice, edges, edges[1:], devices))
            yield predict(draft(tables, choices, stages_per_rank), problem)


@pytest.mark.parametrize("seed", [1, 5])
@pytest.mark.parametrize("most_plans", [0, 1000])
def test_few_plans_are_all_tried_and_of_many_the_best_is_nearly_found(
    random_inputs: RandomInputs,
    seed: int,
    most_plans: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interleaved, "MOST_PLANS", most_plans)
    problem = problem_of(random_inputs, seed)
    best_ms = min(prediction.value_ms for prediction in every_plan(problem, 2))
    found = interleaved.solve(problem, 2, None)
    assert found is not None
    assert best_ms * (1 - 1e-9) <= found.value_ms <= (1 + 1e-9 if most_plans else 1.05) * best_ms
    bound_ms = interleaved.lower_bound_ms(StageTables(problem))
    assert bound_ms <= best_ms
    assert found.bound_ms == (found.value_ms if most_plans else bound_ms)


@pytest.mark.parametrize("seed", range(3))
def test_a_rank_holds_what_its_stages_hold_together_at_most(
    random_inputs: RandomInputs, seed: int
) -> None:
    """Against the evaluator's bytes of the same stages if each held no unit, one unit, and so on.

    Of the working bytes only the largest of a rank's stages count: one unit is in work at a time.
    """
    problem = problem_of(random_inputs, seed)
    idle = replace(problem, inputs=without_working_bytes(problem.inputs))
    plan = next(every_plan(problem, 2)).plan
    for rank, own in plan.stages_of_ranks.items():
        one_each = {stage: bytes_by_units(idle, plan, stage) for stage in own}
        working = [bytes_by_units(problem, plan, stage)[0] - one_each[stage][0] for stage in own]
        held, most = dict.fromkeys(own, 0), 0.0
        for action in plan.rows.rows[rank]:
            held[action.stage] += {"F": 1, "B": -1}[action.kind]
            most = max(most, sum(one_each[s][0] + held[s] * one_each[s][1] for s in own))
        most += max(working)
        assert sum(r.predicted.peak_bytes for r in own.values()) == pytest.approx(most, abs=2)


def bytes_by_units(problem: Problem, plan: Plan, stage: int) -> tuple[float, float]:
    """Return what a stage holds without units, and for each: GPipe's peaks with 4 and with 5 units.

    GPipe has neither a receive buffer ahead of its units nor gradients on their way at its peak.
    """
    gpipe = plan.replace(schedule="gpipe")
    four, five = (peak_bytes(gpipe, problem, stage, [count])[0] for count in (4, 5))
    incoming = [border for border in plan.borders if border.target == stage]
    size = plan.microbatch_size
    ahead = sum(b.forward_bytes(size) + 2 * b.backward_bytes(size) for b in incoming)
    return four - 4 * (five - four) + ahead, five - four


def without_working_bytes(inputs: Inputs) -> Inputs:
    def without(costs: tuple[LayerCost, ...]) -> tuple[LayerCost, ...]:
        return tuple(cost.replace(working_bytes=None) for cost in costs)

    return replace(
        inputs,
        graphs={
            kind: graph.replace(
                layers=tuple(s.replace(costs=without(s.costs)) for s in graph.layers),
                loss=without(graph.loss),
            )
            for kind, graph in inputs.graphs.items()
        },
    )


def test_units_in_flight_are_those_of_the_rows(random_inputs: RandomInputs) -> None:
    plan = next(every_plan(problem_of(random_inputs, 0), 2)).plan
    for stage, content in enumerate(plan.stages):
        (rank,) = (replica.rank for replica in content.replicas)
        assert units_of(plan, stage, [5]) == [plan.rows.units_in_flight(rank, stage)]


def test_a_plan_that_does_not_fit_is_not_found(random_inputs: RandomInputs) -> None:
    problem = problem_of(random_inputs, 1)
    peaks = [
        sum(replica.predicted.peak_bytes for replica in own.values())
        for prediction in every_plan(problem, 2)
        for own in prediction.plan.stages_of_ranks.values()
    ]
    inputs = random_inputs(1, 7, [[("fast", 1), ("slow", 1)]], min(peaks) - 1)
    tight = Problem(inputs=inputs, microbatch_size=2, num_microbatches=5, schedule="interleaved")
    assert interleaved.solve(tight, 2, None) is None


def test_the_users_cuts_are_dealt_in_turn(random_inputs: RandomInputs) -> None:
    problem = problem_of(random_inputs, 0)
    stages = GivenStages.parse("l1,l3,l5", None, "slow,fast,slow,fast")
    found = interleaved.given(problem, stages, 2)
    assert found is not None
    assert [choice.first for choice in found.stages[1:]] == stages.edges(problem)[1:-1]
    assert [choice.devices for choice in found.stages] == [(0, 1), (1, 0)] * 2
    for cuts, replicas, types in (
        ("l1,l3", None, None),
        ("l1,l3,l5", "2,1,1,1", None),
        ("l1,l3,l5", None, "slow,fast,fast,slow"),
    ):
        with pytest.raises(InputError, match="stages per rank; expected a multiple"):
            interleaved.given(problem, GivenStages.parse(cuts, replicas, types), 2)


def test_too_many_stages_are_refused(random_inputs: RandomInputs) -> None:
    with pytest.raises(InputError, match="makes 8 stages, but the model can be cut into 7"):
        interleaved.solve(problem_of(random_inputs, 0), 4, None)
    with pytest.raises(InputError, match="makes 4 stages, but --max-stages is 3"):
        interleaved.solve(problem_of(random_inputs, 0, max_stages=3), 2, None)


@pytest.mark.parametrize("seed", range(5))
def test_even_edges_make_the_slowest_stage_as_fast_as_can_be(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers, size = rng.random((3, 8)), 8
    work = [
        np.array([[row[first:last].sum() for last in range(size + 1)] for first in range(size + 1)])
        for row in layers
    ]

    def slowest(edges: tuple[int, ...]) -> float:
        return max(
            float(row[first:last].sum())
            for row, first, last in zip(layers, edges, edges[1:], strict=False)
        )

    every = [(0, *cuts, size) for cuts in itertools.combinations(range(1, size), 2)]
    assert slowest(interleaved.even_edges(work)) == pytest.approx(min(map(slowest, every)))


def test_orders_are_all_different_and_none_is_left_out(random_inputs: RandomInputs) -> None:
    inputs = random_inputs(0, 7, [[("fast", 2), ("slow", 2)], [("fast", 1)]], 10**9)
    problem = Problem(inputs=inputs, microbatch_size=2, num_microbatches=5)
    orders = list(interleaved.orders_of(problem))
    assert orders[:2] == [(0, 0, 1, 1, 2), (2, 1, 1, 0, 0)]
    assert sorted(orders) == sorted(set(itertools.permutations((0, 0, 1, 1, 2))))
