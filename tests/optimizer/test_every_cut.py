"""Long chains and graphs with too many cuts, through `optimize` itself."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from stagewright.document import InputError
from stagewright.graph import LayerGraph, LayerNode
from stagewright.optimizer.branching import cuts
from stagewright.optimizer.check import check_plan
from stagewright.optimizer.constraints import Constraints
from stagewright.optimizer.costs.cost import Objective
from stagewright.optimizer.load import Inputs
from stagewright.optimizer.planning import Request, Result, optimize
from stagewright.optimizer.solvers import chain_bound, constraint_bound

MakeLayer = Callable[..., LayerNode]
MakeGraph = Callable[..., LayerGraph]
MakeInputs = Callable[..., Inputs]


def chain(make_layer: MakeLayer, size: int) -> list[LayerNode]:
    layers = [make_layer("x", kind="input", batch_sizes=[1])]
    for index in range(size):
        before = layers[-1].name
        own = {"width": 1 + index % 3, "forward_ms": 0.5 + index % 7 / 10}
        layers.append(make_layer(f"l{index}", [before], batch_sizes=[1], **own))
    return layers


def towers(make_layer: MakeLayer, widths: Sequence[int]) -> list[LayerNode]:
    """Parallel branches of some lengths, joined at the end."""
    layers = [make_layer("x", kind="input", batch_sizes=[1])]
    ends = []
    for tower, width in enumerate(widths):
        before = "x"
        for index in range(width):
            name = f"t{tower}_{index}"
            forward_ms = 0.5 + (tower + 2 * index) % 5 / 5
            layers.append(make_layer(name, [before], forward_ms=forward_ms, batch_sizes=[1]))
            before = name
        ends.append(before)
    return [*layers, make_layer("join", ends, batch_sizes=[1])]


def planned(
    inputs: Inputs,
    monkeypatch: pytest.MonkeyPatch,
    solver: str = "exact",
    *,
    straight: bool = False,
) -> Result:
    monkeypatch.setattr(Inputs, "sources", lambda *_: ())
    constraints = Constraints(straight=straight)
    request = Request(batch_size=8, solver=solver, time_limit_s=100.0, constraints=constraints)
    return optimize(inputs, request, Path("plan.json"))


def test_a_chain_of_ten_thousand_layers_is_planned_close_to_its_bound(
    make_layer: MakeLayer,
    make_graph: MakeGraph,
    make_inputs: MakeInputs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = make_graph(chain(make_layer, 10_000))
    result = planned(make_inputs([graph], [[("fast", 2)]]), monkeypatch)
    proof = result.plan.proof
    assert sum(len(stage.layers) for stage in result.plan.stages) == 10_000
    assert proof.every_cut is not None and proof.every_cut_gap is not None
    assert proof.lower_bound <= proof.value and 0 <= proof.every_cut_gap < 0.01


def test_a_thinned_plan_is_made_better_close_by(
    make_layer: MakeLayer,
    make_graph: MakeGraph,
    make_inputs: MakeInputs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = make_inputs([make_graph(chain(make_layer, 90))], [[("fast", 1)], [("fast", 1)]])
    exact = planned(inputs, monkeypatch, straight=True).plan.proof
    monkeypatch.setattr(cuts, "MOST_IN_ORDER", 50)
    monkeypatch.setattr(cuts, "MOST_THIN", 10)
    monkeypatch.setattr(cuts, "MOST_AROUND", 0)
    coarse = planned(inputs, monkeypatch, straight=True).plan.proof
    monkeypatch.setattr(cuts, "MOST_AROUND", 30)
    fine = planned(inputs, monkeypatch, straight=True).plan.proof
    assert exact.lower_bound == exact.value and exact.every_cut is None
    assert coarse.value > exact.value
    assert fine.value == pytest.approx(exact.value)
    assert fine.lower_bound <= exact.value and "close to the best plan's" in fine.space


@pytest.mark.parametrize("solver", ["exact", "labels"])
def test_many_ideals_are_contracted_and_the_plan_says_so(
    make_layer: MakeLayer,
    make_graph: MakeGraph,
    make_inputs: MakeInputs,
    monkeypatch: pytest.MonkeyPatch,
    solver: str,
) -> None:
    inputs = make_inputs([make_graph(towers(make_layer, (3, 3, 3)))], [[("fast", 3)]])
    every = planned(inputs, monkeypatch, solver).plan.proof
    assert "all 65 ideals of the 10 layers" in every.space and every.every_cut is None
    monkeypatch.setattr(cuts, "MOST_EVERY", 20)
    result = planned(inputs, monkeypatch, solver)
    proof = result.plan.proof
    assert "contracted to" in proof.space and "topological orders" in proof.space
    assert proof.every_cut is not None and "fluid" in proof.every_cut.method
    assert proof.every_cut.lower_bound <= every.value * (1 + 1e-9) <= proof.value * (1 + 2e-9)
    proven = check_plan(result.plan, inputs, Path("plan.json"))
    assert proven and all(bound <= proof.value for bound in proven)


@pytest.mark.parametrize("objective", ["step-time", "throughput"])
@pytest.mark.parametrize("max_stages", [None, 2])
def test_a_bound_for_every_cut_can_be_checked_and_claims_above_it_are_refused(
    make_layer: MakeLayer,
    make_graph: MakeGraph,
    make_inputs: MakeInputs,
    monkeypatch: pytest.MonkeyPatch,
    objective: Objective,
    max_stages: int | None,
) -> None:
    monkeypatch.setattr(Inputs, "sources", lambda *_: ())
    monkeypatch.setattr(cuts, "MOST_IN_ORDER", 20)
    monkeypatch.setattr(cuts, "MOST_THIN", 10)
    monkeypatch.setattr(constraint_bound, "find_spec", lambda _: None)
    monkeypatch.setattr(chain_bound, "MOST_LAYERS", 10)
    graph = make_graph(chain(make_layer, 40))
    inputs = make_inputs([graph], [[("fast", 3)]], memory_bytes=5000)
    request = Request(batch_size=8, objective=objective, max_stages=max_stages, time_limit_s=100.0)
    plan = optimize(inputs, request, Path("plan.json")).plan
    every = plan.proof.every_cut
    assert every is not None and "fluid" in every.method
    assert check_plan(plan, inputs, Path("plan.json")) == [pytest.approx(every.lower_bound)]
    claim = plan.proof.certificates[0].replace(bound_ms=every.lower_bound * 1.01)
    lying = plan.replace(proof=plan.proof.replace(certificates=(claim,)))
    with pytest.raises(InputError, match="do not trust it"):
        check_plan(lying, inputs, Path("plan.json"))


def test_a_constraint_programme_bounds_every_cut(
    make_layer: MakeLayer,
    make_graph: MakeGraph,
    make_inputs: MakeInputs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = make_inputs(
        [make_graph(towers(make_layer, (3, 3, 3)))], [[("fast", 2)], [("fast", 1)]]
    )
    best = planned(inputs, monkeypatch, straight=True).plan.proof
    monkeypatch.setattr(cuts, "MOST_EVERY", 20)
    proof = planned(inputs, monkeypatch, straight=True).plan.proof
    assert proof.every_cut is not None and "constraint programme" in proof.every_cut.method
    monkeypatch.setattr(constraint_bound, "find_spec", lambda _: None)
    without = planned(inputs, monkeypatch, straight=True).plan.proof
    assert without.every_cut is not None and "fluid" in without.every_cut.method
    bounds = without.every_cut.lower_bound, proof.every_cut.lower_bound
    assert bounds[0] < bounds[1] <= best.value * (1 + 1e-9) <= proof.value * (1 + 2e-9)


def test_solvers_that_move_cuts_plan_in_the_graph_s_order(
    make_layer: MakeLayer,
    make_graph: MakeGraph,
    make_inputs: MakeInputs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = make_inputs([make_graph(towers(make_layer, (2, 2)))], [[("fast", 2)]])
    proof = planned(inputs, monkeypatch, "local-search").plan.proof
    assert "in the graph's order" in proof.space and proof.every_cut is not None


def test_nothing_fits_is_one_line_however_long_the_chain(
    make_layer: MakeLayer,
    make_graph: MakeGraph,
    make_inputs: MakeInputs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuts, "MOST_IN_ORDER", 20)
    monkeypatch.setattr(cuts, "MOST_THIN", 10)
    inputs = make_inputs([make_graph(chain(make_layer, 30))], [[("fast", 2)]], memory_bytes=1)
    with pytest.raises(InputError, match="memory"):
        planned(inputs, monkeypatch)
