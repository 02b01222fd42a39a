"""The layer graph refuses what contradicts itself, and answers by name and micro-batch size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stagewright.document import InputError
from stagewright.graph import (
    GRAPH_FORMAT,
    Emulation,
    LayerCost,
    LayerGraph,
    LayerNode,
    MapCost,
    SharedMap,
    unique_parameters,
)
from stagewright.value import LayerRef

Spoil = Callable[[dict[str, Any]], None]
GOLDEN = Path(__file__).parent / "golden" / "graph.v1.json"


@pytest.fixture(scope="module")
def graph() -> LayerGraph:
    return LayerGraph.load(GOLDEN)


def without_embedding(content: dict[str, Any]) -> None:
    content["layers"].pop(2)


def twice(content: dict[str, Any]) -> None:
    content["layers"].append(content["layers"][0])


def other_sizes(content: dict[str, Any]) -> None:
    content["layers"][3]["costs"].pop()


def strange_output(content: dict[str, Any]) -> None:
    content["output"] = {"kind": "layer", "name": "gone"}


def no_sizes(content: dict[str, Any]) -> None:
    content["batch_sizes"] = []


def negative_time(content: dict[str, Any]) -> None:
    content["layers"][2]["costs"][0]["forward_ms"] = -0.5


def missing_time(content: dict[str, Any]) -> None:
    del content["layers"][2]["costs"][0]["backward_ms"]


def unknown_kind(content: dict[str, Any]) -> None:
    content["layers"][2]["operation"]["kind"] = "code"


def shared_map(*layers: str, build_ms: float = 0.1, sizes: tuple[int, ...] = (2, 4)) -> Spoil:
    def spoil(content: dict[str, Any]) -> None:
        costs = [{"batch_size": size, "build_ms": build_ms} for size in sizes]
        content["version"] = GRAPH_FORMAT.version
        content["shared_maps"] = [{"kind": "kernel", "layers": layers, "costs": costs}]

    return spoil


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (without_embedding, "layer 'lstm' takes 'embedding', which is no earlier layer"),
        (twice, "layer 'tokens' is there twice"),
        (other_sizes, "layer 'lstm' has costs for the micro-batch sizes [2], expected [2, 4]"),
        (strange_output, "the output refers to 'gone', which is no layer"),
        (no_sizes, "batch_sizes must name at least one micro-batch size"),
        (negative_time, "forward_ms is -0.5, expected a finite number that is not negative"),
        (missing_time, "missing required field `backward_ms`"),
        (unknown_kind, "Invalid value 'code'"),
        (shared_map("lstm"), "shared_maps[0] is of ['lstm'], expected two layers or more"),
        (shared_map("lstm", "embedding"), "expected two layers or more in the graph's order"),
        (shared_map("tokens", "lstm"), "expected two layers or more in the graph's order"),
        (shared_map("embedding", "lstm", sizes=(2,)), "lacks costs, expected them for [2, 4]"),
        (shared_map("embedding", "lstm", build_ms=-1.0), "build_ms is -1.0, expected a finite"),
        (shared_map("embedding", "lstm", build_ms=0.3), "longer than the forward of 'embedding'"),
    ],
)
def test_a_graph_that_contradicts_itself_is_refused(
    spoil: Spoil, problem: str, tmp_path: Path
) -> None:
    content = msgspec.json.decode(GOLDEN.read_bytes())
    spoil(content)
    path = tmp_path / "graph.json"
    path.write_bytes(msgspec.json.encode(content))
    with pytest.raises(InputError) as caught:
        LayerGraph.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch_size", 0), ("repeats", 0), ("forward_ms", float("nan")), ("saved_bytes", -1)],
)
def test_a_cost_that_is_no_measurement_is_refused(field: str, value: float) -> None:
    cost = LayerCost(batch_size=1, forward_ms=1.0, backward_ms=1.0, output_bytes=1)
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        cost.replace(**{field: value})


@pytest.mark.parametrize("slowdown", [0.5, float("nan"), float("inf")])
def test_an_emulated_device_is_never_faster_than_the_real_one(slowdown: float) -> None:
    with pytest.raises(ValueError, match="slowdown is "):
        Emulation(slowdown=slowdown)


def test_inputs_of_a_layer_come_once_in_the_order_of_the_call(graph: LayerGraph) -> None:
    assert graph.by_name["add"].inputs == ("to", "bias")
    assert graph.by_name["add_1"].inputs == ("add",)
    assert graph.outputs == ("elsewhere", "mask")


def test_steps_are_all_layers_but_the_models_inputs(graph: LayerGraph) -> None:
    names = [layer.name for layer in graph.layers]
    assert [layer.name for layer in graph.steps] == names[2:]


def test_costs_are_found_by_size_and_never_made_up(graph: LayerGraph) -> None:
    assert graph.by_name["lstm"].cost_at(4).forward_ms == 6.0
    with pytest.raises(InputError, match="'lstm' was not measured at a micro-batch of 3 samples"):
        graph.by_name["lstm"].cost_at(3)
    assert graph.whole_at(3) is None
    whole = graph.whole_at(4)
    assert whole is not None and whole.peak_bytes == 12345


def test_a_stage_builds_the_maps_again_that_another_one_has_first(graph: LayerGraph) -> None:
    costs = (MapCost(batch_size=2, build_ms=0.1), MapCost(batch_size=4, build_ms=0.2))
    names = ("embedding", "add", "add_1")
    shared = SharedMap(kind="kernel", layers=names, costs=costs)
    graph = graph.replace(shared_maps=(shared, shared.replace(layers=("embedding", "elsewhere"))))
    for stage, expected in (
        (("embedding", "lstm", "add"), 0.0),
        (("lstm", "add", "add_1"), 0.2),
        (("add_1", "elsewhere"), 0.4),
        (("lstm",), 0.0),
    ):
        assert graph.built_again_ms(stage, 4) == expected


def test_tied_parameters_count_once_under_the_first_name(graph: LayerGraph) -> None:
    assert list(unique_parameters(graph, graph.layers)) == ["embedding.weight", "bias"]
    assert graph.canonical_names["lstm.weight"] == "embedding.weight"


def test_a_deep_chain_of_layers_is_checked_without_recursion(graph: LayerGraph) -> None:
    layers: list[LayerNode] = [graph.layers[0]]
    for number in range(5_000):
        source = LayerRef(name=layers[-1].name)
        layers.append(graph.by_name["add_1"].replace(name=f"n{number}", arguments=(source,)))
    deep = graph.replace(layers=tuple(layers), output=None, tied=())
    assert len(deep.steps) == 5_000
