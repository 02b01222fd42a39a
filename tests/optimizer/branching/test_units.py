"""Which layers a cut may not part; that this hurts no plan is tested in test_every_cut.py."""

from collections.abc import Callable

from stagewright.graph import LayerGraph, LayerNode
from stagewright.optimizer.branching.units import Units, units_of

MakeLayer = Callable[..., LayerNode]
MakeGraph = Callable[..., LayerGraph]


def units(make_graph: MakeGraph, *layers: LayerNode) -> Units:
    return units_of(make_graph(layers), 1, lambda layer: layer.name.startswith("free"))


def test_a_free_layer_joins_its_maker_or_its_only_user(
    make_layer: MakeLayer, make_graph: MakeGraph
) -> None:
    found = units(
        make_graph,
        make_layer("x", kind="input"),
        make_layer("a", ["x"], width=8),
        make_layer("free_smaller", ["a"], width=4),
        make_layer("b", ["free_smaller"], width=3),
        make_layer("free_larger", ["b"], width=5),
        make_layer("c", ["free_larger"]),
    )
    assert found.layers == ((0, 1), (2,), (3, 4))
    assert found.sources == ((), (0,), (1,)) and found.output_bytes == (16.0, 12.0, 40.0)


def test_a_free_layer_stays_where_joining_would_send_more(
    make_layer: MakeLayer, make_graph: MakeGraph
) -> None:
    found = units(
        make_graph,
        make_layer("x", kind="input"),
        make_layer("a", ["x"], width=2),
        make_layer("free", ["a"], width=4),
        make_layer("b", ["free", "a"]),
        make_layer("c", ["free", "b"]),
    )
    assert found.layers == ((0,), (1,), (2,), (3,))


def test_what_takes_a_value_comes_before_what_changes_it_in_place(
    make_layer: MakeLayer, make_graph: MakeGraph
) -> None:
    found = units(
        make_graph,
        make_layer("x", kind="input"),
        make_layer("a", ["x"]),
        make_layer("reads", ["a"]),
        make_layer("changes", ["a"]).replace(overwrites="a"),
        make_layer("c", ["changes", "reads"]),
    )
    assert found.sources == ((), (0,), (0, 1), (1, 2))
