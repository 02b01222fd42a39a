"""Inputs that do not belong together are refused, with both files and the difference named."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stagewright.document import InputError
from stagewright.graph import LayerGraph, LayerNode, MapCost, SharedMap
from stagewright.optimizer import load
from stagewright.optimizer.load import Inputs, load_inputs, load_inputs_of_plan
from stagewright.optimizer.planning import Request, optimize

MakeLayer = Callable[..., LayerNode]
MakeGraph = Callable[..., LayerGraph]
MakeInputs = Callable[..., Inputs]

CLUSTER = """
format = "stagewright.cluster"
version = 1
device_types.fast = { memory_bytes = 1000000, profile = "fast.json" }
device_types.slow = { memory_bytes = 1000000, profile = "slow.json" }
servers = [{ name = "here", devices = [{ type = "fast", count = 1 }, { type = "slow", count = 1 }] }]
links.inside_server = { bandwidth_bytes_per_s = 1e9, latency_ms = 0.1 }
"""
SHARED = SharedMap(
    kind="kernel",
    layers=("a", "b"),
    costs=tuple(MapCost(batch_size=size, build_ms=0.1) for size in (1, 2, 4)),
)


@pytest.fixture
def graph(make_layer: MakeLayer, make_graph: MakeGraph) -> LayerGraph:
    return make_graph(
        [make_layer("x", kind="input"), make_layer("a", ["x"]), make_layer("b", ["a"])]
    )


def write(folder: Path, fast: LayerGraph, slow: LayerGraph) -> Path:
    (folder / "cluster.toml").write_text(CLUSTER)
    fast.save(folder / "fast.json")
    slow.save(folder / "slow.json")
    return folder / "cluster.toml"


def test_graphs_of_one_model_are_loaded_by_device_type(tmp_path: Path, graph: LayerGraph) -> None:
    slow = graph.replace(device_type="slow")
    inputs = load_inputs(write(tmp_path, graph, slow))
    assert inputs.graphs == {"fast": graph, "slow": slow}


def test_a_profile_of_another_device_type_is_refused(tmp_path: Path, graph: LayerGraph) -> None:
    with pytest.raises(InputError, match=r"slow.json: device type is 'fast', but .*cluster.toml"):
        load_inputs(write(tmp_path, graph, graph))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float64"}, r"slow.json: dtype is 'float64', but .*fast.json has 'float32'"),
        ({"tied": (("a", "b"),)}, r"slow.json: tied differs"),
        ({"shared_maps": (SHARED,)}, r"slow.json: shared_maps are of other layers than in .*fast"),
    ],
)
def test_graphs_of_different_measurements_are_refused(
    tmp_path: Path, graph: LayerGraph, changes: dict[str, object], message: str
) -> None:
    slow = graph.replace(device_type="slow", **changes)
    with pytest.raises(InputError, match=message):
        load_inputs(write(tmp_path, graph, slow))


def test_the_first_layer_that_differs_is_named_in_both_files(
    tmp_path: Path, graph: LayerGraph, make_layer: MakeLayer
) -> None:
    layers = (*graph.layers[:2], make_layer("c", ["a"]))
    slow = graph.replace(device_type="slow", layers=layers, output=None)
    with pytest.raises(
        InputError, match=r"slow.json: layer 2 is 'c', but .*fast.json has 'b' there"
    ):
        load_inputs(write(tmp_path, graph, slow))


def test_a_source_that_changed_after_planning_is_refused(tmp_path: Path, graph: LayerGraph) -> None:
    cluster = write(tmp_path, graph, graph.replace(device_type="slow"))
    path = tmp_path / "plans" / "plan.json"
    plan = optimize(load_inputs(cluster), Request(batch_size=4), path).plan
    plan.save(path)
    assert load_inputs_of_plan(plan, path).model == graph
    with (tmp_path / "slow.json").open("a") as file:
        file.write("\n")
    with pytest.raises(InputError, match=r"slow.json: has changed since .*plan.json"):
        load_inputs_of_plan(plan, path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"forward_ms": 1.0', '"forward_ms": -1.0', r"fast.json: .*forward_ms is -1.0, expected"),
        ('"forward_ms": 1.0', '"forward_ms": NaN', r"fast.json: is not valid JSON"),
        ('"name": "a"', '"name": "z"', r"fast.json: .*'b' takes 'a', which is no earlier layer"),
    ],
)
def test_costs_and_orders_that_no_measurement_has_are_one_line(
    tmp_path: Path, graph: LayerGraph, old: str, new: str, message: str
) -> None:
    cluster = write(tmp_path, graph, graph.replace(device_type="slow"))
    text = (tmp_path / "fast.json").read_text()
    assert old in text
    (tmp_path / "fast.json").write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        load_inputs(cluster)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('type = "fast", count = 1', 'type = "fast", count = 0', "count of 'fast' is 0, expected"),
        (', profile = "fast.json"', "", r"cluster.toml: .*profile"),
        ('type = "fast", count', 'type = "quick", count', r"cluster.toml: .*'quick'"),
        ('profile = "fast.json"', 'profile = "gone.json"', r"gone.json: cannot be read"),
    ],
)
def test_clusters_without_devices_or_profiles_are_one_line(
    tmp_path: Path, graph: LayerGraph, old: str, new: str, message: str
) -> None:
    cluster = write(tmp_path, graph, graph.replace(device_type="slow"))
    assert old in CLUSTER
    cluster.write_text(CLUSTER.replace(old, new))
    with pytest.raises(InputError, match=message) as caught:
        load_inputs(cluster)
    assert "\n" not in str(caught.value)


def test_a_model_of_more_layers_than_tables_can_hold_is_refused(
    tmp_path: Path, graph: LayerGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = load_inputs(write(tmp_path, graph, graph.replace(device_type="slow")))
    monkeypatch.setattr(load, "MOST_LAYERS", 1)
    with pytest.raises(InputError, match=r"fast.json: has 2 layers, expected at most 1"):
        optimize(inputs, Request(batch_size=4), tmp_path / "plan.json")
