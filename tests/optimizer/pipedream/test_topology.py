"""Which layers are planned, and in which order."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.document import InputError
from stagewright.optimizer.pipedream.topology import topology_of
from stagewright.pipedream_graph import TextGraph, TextNode

MakeNode = Callable[..., TextNode]
MakeGraph = Callable[[int, int], TextGraph]


def test_inputs_and_unused_results_are_left_out(text_node: MakeNode) -> None:
    nodes = (
        text_node("x", 1, 1, 1, description="Input0"),
        text_node("a", 1, 1, 1),
        text_node("b", 0, 0, 1, description="__getitem__(0)"),
        text_node("c", 0, 0, 1, description="__getitem__(1)"),
        text_node("d", 1, 1, 1),
    )
    graph = TextGraph(nodes=nodes, edges=(("x", "a"), ("a", "b"), ("a", "c"), ("b", "d")))
    assert [n.name for n in topology_of(graph).nodes] == ["a", "b", "d"]
    assert topology_of(graph, keep_inputs=True).nodes[0].name == "x"


@given(st.integers(0, 10_000), st.integers(2, 12))
def test_every_layer_comes_behind_those_it_takes_values_from(
    random_branching: MakeGraph, seed: int, size: int
) -> None:
    topology = topology_of(random_branching(seed, size))
    assert len(topology.nodes) == size
    assert all(t > layer for layer, found in enumerate(topology.targets) for t in found)


def test_a_branch_is_finished_before_the_next_if_that_keeps_fewer_bytes(
    text_node: MakeNode,
) -> None:
    names = ["s", "a1", "b1", "a2", "b2", "t"]
    sizes = [10, 100, 100, 1, 1, 1]
    nodes = tuple(text_node(n, 1, 1, size) for n, size in zip(names, sizes, strict=True))
    edges = [("s", "a1"), ("s", "b1"), ("a1", "a2"), ("b1", "b2"), ("a2", "t"), ("b2", "t")]
    topology = topology_of(TextGraph(nodes=nodes, edges=tuple(edges)))
    assert [n.name for n in topology.nodes] == ["s", "a1", "a2", "b1", "b2", "t"]


def test_a_cycle_is_refused(text_node: MakeNode) -> None:
    nodes = tuple(text_node(name, 1, 1, 1) for name in "abc")
    graph = TextGraph(nodes=nodes, edges=(("a", "b"), ("b", "c"), ("c", "b")))
    with pytest.raises(InputError, match="'b' is on or behind a cycle"):
        topology_of(graph)


def test_a_graph_of_inputs_only_is_refused(text_node: MakeNode) -> None:
    graph = TextGraph(nodes=(text_node("x", 1, 1, 1, description="Input0"),), edges=())
    with pytest.raises(InputError, match="inputs only"):
        topology_of(graph)
