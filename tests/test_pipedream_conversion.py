"""Text graphs as layer graphs and back: order, costs and arguments survive."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.document import InputError
from stagewright.graph import ExternalOperation, InputOperation, LayerGraph
from stagewright.pipedream_conversion import from_layer_graph, to_layer_graph
from stagewright.pipedream_graph import TextGraph, TextNode, parse_graph

GOLDEN = Path(__file__).parent / "golden"
DATA = Path(__file__).parents[2] / "shared" / "data"


def node(name: str, description: str = "Layer()", ms: float = 1.0) -> TextNode:
    return TextNode(
        name=name,
        description=description,
        forward_ms=ms,
        backward_ms=2 * ms,
        activation_bytes=8.0,
        parameter_bytes=4.0,
    )


@st.composite
def acyclic_graphs(draw: st.DrawFn) -> TextGraph:
    count = draw(st.integers(1, 7))
    rank_of = draw(st.permutations(range(count)))
    pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
    drawn = draw(st.lists(pairs, max_size=12))
    edges = tuple((f"n{a}", f"n{b}") for a, b in drawn if rank_of[a] < rank_of[b])
    return TextGraph(nodes=tuple(node(f"n{i}", ms=i + 1.0) for i in range(count)), edges=edges)


def first_topological_order(graph: TextGraph) -> list[str]:
    """Take, again and again, the first line whose sources are all taken."""
    left, taken = [n.name for n in graph.nodes], list[str]()
    while left:
        free = [n for n in left if all(a in taken for a, b in graph.edges if b == n)]
        taken.append(free[0])
        left.remove(free[0])
    return taken


@given(acyclic_graphs())
def test_layers_come_in_the_first_topological_order(graph: TextGraph) -> None:
    layers = to_layer_graph(graph, "gpu", 64).layers
    assert [layer.name for layer in layers] == first_topological_order(graph)


@given(acyclic_graphs())
def test_a_graph_goes_to_layers_and_back_but_for_the_identifiers(graph: TextGraph) -> None:
    layers = to_layer_graph(graph, "gpu", 64)
    back = from_layer_graph(layers, 64)
    new_name = {layer.name: f"node{k}" for k, layer in enumerate(layers.layers, 1)}
    by_name = {n.name: n for n in graph.nodes}
    assert [n.forward_ms for n in back.nodes] == [by_name[n].forward_ms for n in new_name]
    assert sorted(back.edges) == sorted((new_name[a], new_name[b]) for a, b in graph.edges)
    assert from_layer_graph(to_layer_graph(back, "gpu", 64), 64) == back


def test_arguments_keep_their_order_and_repeats() -> None:
    edges = (("b", "c"), ("a", "c"), ("b", "c"))
    graph = TextGraph(nodes=(node("a"), node("b"), node("c")), edges=edges)
    back = from_layer_graph(to_layer_graph(graph, "gpu", 1), 1)
    assert back.edges == (("node2", "node3"), ("node1", "node3"), ("node2", "node3"))


def test_inputs_are_nodes_called_input_without_a_source() -> None:
    nodes = (node("x", "Input0"), node("y", "Input1"), node("z", "InputNorm(3)"))
    graph = TextGraph(nodes=nodes, edges=(("x", "z"), ("y", "z")))
    x, y, z = (layer.operation for layer in to_layer_graph(graph, "gpu", 1).layers)
    assert (x, y) == (InputOperation(key=0), InputOperation(key=1))
    assert z == ExternalOperation(description="InputNorm(3)")


def test_a_chain_of_ten_thousand_lines_in_reverse_order_is_read_without_recursion() -> None:
    names = [f"n{i}" for i in range(10_000)]
    graph = TextGraph(
        nodes=tuple(node(name) for name in reversed(names)),
        edges=tuple(itertools.pairwise(names)),
    )
    assert [layer.name for layer in to_layer_graph(graph, "gpu", 1).layers] == names


def test_a_cycle_is_refused_by_name() -> None:
    edges = (("a", "b"), ("b", "c"), ("c", "b"), ("c", "d"))
    graph = TextGraph(nodes=tuple(map(node, "abcd")), edges=edges)
    with pytest.raises(InputError, match="the edges b -> c -> b form a cycle"):
        to_layer_graph(graph, "gpu", 1)
    with pytest.raises(InputError, match="a -> a form a cycle"):
        to_layer_graph(TextGraph(nodes=(node("a"),), edges=(("a", "a"),)), "gpu", 1)


def test_equal_structure_has_an_equal_hash_whatever_the_costs_and_the_printing() -> None:
    edges = (("a", "b"),)
    old = TextGraph(nodes=(node("a"), node("b", "Conv(bias=None)")), edges=edges)
    new = TextGraph(nodes=(node("a", ms=9), node("b", "Conv(has_bias=False)")), edges=edges)
    other = TextGraph(nodes=(node("a"), node("b")), edges=())
    hashes = [to_layer_graph(g, "gpu", 1).model.structure_sha256 for g in (old, new, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_native_layers_are_described_as_they_print() -> None:
    graph = from_layer_graph(LayerGraph.load(GOLDEN / "graph.v1.json"), 2)
    assert [n.description for n in graph.nodes] == [
        "Input0",
        "Inputmask",
        "Embedding(10, 8, padding_idx=None, max_norm=None, norm_type=2.0)",
        "Recurrent()",
        "__getitem__(0)",
        "operator.getitem",
        "to",
        "bias",
        "Add",
        "Add",
        "MinkowskiReLU()",
    ]
    assert graph.nodes[3].activation_bytes == (384.0, 0.0, 64.0)
    assert graph.edges[-3:] == (
        ("node9", "node10"),
        ("node9", "node10"),
        ("node10", "node11"),
    )
    assert parse_graph(str(graph)) == graph


def test_stages_are_written_and_an_unmeasured_size_is_refused() -> None:
    layers = LayerGraph.load(GOLDEN / "graph.v1.json")
    stages = {layer.name: int(number > 4) for number, layer in enumerate(layers.steps)}
    graph = from_layer_graph(layers, 4, stages)
    assert [n.stage for n in graph.nodes] == [0] * 7 + [1] * 4
    with pytest.raises(InputError, match="not measured at a micro-batch of 3"):
        from_layer_graph(layers, 3)


def test_published_profiles_of_one_model_are_one_structure() -> None:
    paths = sorted((DATA / "sparsepipe").glob("minkvgg_b64_*.graph.txt"))
    if not paths:
        pytest.skip(f"{DATA} is not there: published profiles are not part of the project")
    graphs = [to_layer_graph(TextGraph.load(path), path.stem, 64) for path in paths]
    assert len({graph.model.structure_sha256 for graph in graphs}) == 1
    assert all(len(graph.steps) == 52 for graph in graphs)
