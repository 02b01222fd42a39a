"""Borders against a direct reading of the rules, value by value."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from stagewright.document import InputError
from stagewright.graph import AttributeOperation, LayerGraph, LayerNode
from stagewright.optimizer.assemble import draft
from stagewright.optimizer.borders import (
    borders_of,
    chain_of,
    has_branches,
    inputs_of,
    opaque_groups,
    stage_layers,
    stages_that_share_parameters,
)
from stagewright.optimizer.costs.tables import StageTables
from stagewright.optimizer.load import Inputs
from stagewright.optimizer.problem import Problem
from stagewright.optimizer.solvers import brute_force, exact
from stagewright.value import OpaqueSpec

RandomInputs = Callable[..., Inputs]
MakeLayer = Callable[..., LayerNode]
MakeGraph = Callable[..., LayerGraph]


@pytest.mark.parametrize("seed", range(8))
def test_every_stage_has_what_it_uses_and_nothing_is_sent_in_vain(
    random_inputs: RandomInputs, seed: int
) -> None:
    graph = random_inputs(seed, 6, [[("fast", 1)]], 10**9).model
    size = len(chain_of(graph))
    for cuts in itertools.chain(*(itertools.combinations(range(1, size), n) for n in range(4))):
        stages = stage_layers(graph, cuts)
        sent = {
            (border.source, border.target, value.layer)
            for border in borders_of(graph, stages, 2)
            for value in border.values
        }
        wanted = set()
        for target, names in enumerate(stages):
            used = {i for name in names for i in graph.by_name[name].inputs}
            used |= set(graph.outputs) if target == len(stages) - 1 else set()
            for name in used - set(names):
                layer = graph.by_name[name]
                if not layer.is_input:
                    assert not isinstance(layer.operation, AttributeOperation)
                    makers = [s for s, other in enumerate(stages) if name in other]
                    wanted.add((*makers, target, name))
        assert sent == wanted


def test_a_bare_parameter_is_held_by_every_stage_that_uses_it_and_never_sent(
    make_layer: MakeLayer, make_graph: MakeGraph
) -> None:
    graph = make_graph(
        [
            make_layer("x", kind="input"),
            make_layer("scale", kind="attribute", parameters=[("scale", 40)]),
            make_layer("a", ["x", "scale"]),
            make_layer("b", ["a"]),
            make_layer("c", ["b", "scale"]),
        ]
    )
    stages = stage_layers(graph, [1, 2])
    assert stages == (("scale", "a"), ("b",), ("scale", "c"))
    assert [(b.source, b.target) for b in borders_of(graph, stages, 1)] == [(0, 1), (1, 2)]
    assert stages_that_share_parameters(graph, stages) == ((0, 2), (1,), (0, 2))
    assert [value.layer for value in inputs_of(graph, 1)] == ["x"]


def test_a_returned_value_goes_straight_to_the_last_stage(
    make_layer: MakeLayer, make_graph: MakeGraph
) -> None:
    layers = [make_layer("x", kind="input"), make_layer("a", ["x"])]
    layers += [make_layer("b", ["a"]), make_layer("c", ["b"])]
    graph = make_graph(layers, outputs=["c", "a"])
    borders = borders_of(graph, stage_layers(graph, [1, 2]), 1)
    found = [(b.source, b.target, [v.layer for v in b.values]) for b in borders]
    assert found == [(0, 1, ["a"]), (0, 2, ["a"]), (1, 2, ["b"])]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([["a"], ["b", "nothing"]], "'nothing', which is no layer"),
        ([["a"], ["a", "b"]], "'a' is in stages 0 and 1"),
        ([["a"]], "'b' is in no stage"),
        ([["b"], ["a"]], "stages must follow the order"),
    ],
)
def test_stages_that_contradict_the_graph_are_refused(
    make_layer: MakeLayer, make_graph: MakeGraph, stages: list[list[str]], message: str
) -> None:
    layers = [make_layer("x", kind="input"), make_layer("a", ["x"]), make_layer("b", ["a"])]
    with pytest.raises(InputError, match=message):
        borders_of(make_graph(layers), stages, 1)


def test_a_graph_branches_where_its_layers_have_more_than_one_order(
    make_layer: MakeLayer, make_graph: MakeGraph
) -> None:
    start = [make_layer("x", kind="input"), make_layer("a", ["x"]), make_layer("b", ["a"])]
    skip = make_graph([*start, make_layer("sum", ["b", "a"])])
    branch = make_graph([*start, make_layer("c", ["a"]), make_layer("sum", ["b", "c"])])
    assert not has_branches(skip)
    assert has_branches(branch)


@pytest.mark.parametrize("seed", range(3))
def test_what_cannot_be_sent_is_never_cut_and_refused_where_a_border_needs_it(
    random_inputs: RandomInputs, seed: int
) -> None:
    made = random_inputs(seed, 5, [[("fast", 1), ("slow", 1)]], 10**9)
    chain = chain_of(made.model)
    user = next(layer for layer in chain if any(name == chain[1].name for name in layer.inputs))
    opaque = OpaqueSpec(type="somewhere.Custom")
    graphs = {
        kind: graph.replace(
            layers=tuple(
                layer.replace(output=opaque) if layer.name == chain[1].name else layer
                for layer in graph.layers
            )
        )
        for kind, graph in made.graphs.items()
    }
    inputs = replace(made, graphs=graphs)
    (group,) = opaque_groups(inputs.model)
    assert {chain[1].name, user.name} <= set(group)
    problem = Problem(inputs=inputs, microbatch_size=1, num_microbatches=4)
    found, best = exact.solve(problem), brute_force.solve(problem)
    assert found is not None and best is not None
    assert found.value_ms == pytest.approx(best.value_ms)
    for stage in draft(StageTables(problem), found.stages).stages:
        assert len(set(group) & set(stage.layers)) in (0, len(group))
    cut = chain.index(user)
    with pytest.raises(
        InputError, match=f"'{chain[1].name}' of stage 0 returns a somewhere.Custom"
    ):
        borders_of(inputs.model, stage_layers(inputs.model, [cut]), 1)
