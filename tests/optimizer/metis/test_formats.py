"""Metis's files: what is read, and that every malformed one is named."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.document import InputError
from stagewright.optimizer.metis.formats import ProfileFolder, load_devices

CLUSTER = {
    "a": {"instance_type": "V100", "inter_bandwidth": 10, "intra_bandwidth": 50, "memory": 16},
    "b": {"instance_type": "a100", "inter_bandwidth": 10, "intra_bandwidth": 46, "memory": 80},
}
PROFILE: dict[str, Any] = {
    "model": {"parameters": {"parameters_per_layer_bytes": [3, 4]}},
    "execution_time": {
        "forward_backward_time_ms": 7.0,
        "batch_generator_time_ms": 0.5,
        "optimizer_time_ms": 1.5,
        "layer_compute_total_ms": [2.0, 4.0],
    },
    "execution_memory": {"layer_memory_total_mb": [10, 20]},
}


def write_cluster(folder: Path, hosts: str, cluster: Any = CLUSTER) -> tuple[Path, Path]:
    hostfile, clusterfile = folder / "hostfile", folder / "clusterfile.json"
    hostfile.write_text(hosts)
    clusterfile.write_text(cluster if isinstance(cluster, str) else json.dumps(cluster))
    return hostfile, clusterfile


def test_devices_are_counted_by_type_with_any_number_of_slots(tmp_path: Path) -> None:
    hosts = "# two nodes\na slots=16\n\nb slots=4\n  a   slots = 8 \n"
    found = load_devices(*write_cluster(tmp_path, hosts))
    assert [(device.name, device.count) for device in found] == [("A100", 4), ("V100", 24)]
    assert [device.memory_mb for device in found] == [80 * 1024, 16 * 1024]
    assert [device.bandwidth_gb_per_s for device in found] == [46, 50]


@pytest.mark.parametrize("line", ["a 8", "a slots=0", "a slots=x", "a", "slots=4", "a slots=4 b"])
def test_a_malformed_host_is_named_by_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError, match=r"hostfile:2: .*expected a node and its devices"):
        load_devices(*write_cluster(tmp_path, f"a slots=4\n{line}\n"))


def test_an_unknown_node_and_an_empty_hostfile_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"hostfile:1: node 'c' is not in .*clusterfile.json"):
        load_devices(*write_cluster(tmp_path, "c slots=4"))
    with pytest.raises(InputError, match="hostfile: names no node"):
        load_devices(*write_cluster(tmp_path, "\n"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory": 0}, "memory"),
        ({"intra_bandwidth": -1}, "intra_bandwidth"),
        ({"instance_type": "A_100"}, "instance_type"),
        ({"instance_type": "A100", "memory": 40}, "another entry"),
        ({"price": 3}, "price"),
        ({"inter_bandwidth": None}, "inter_bandwidth"),
    ],
)
def test_a_wrong_entry_of_the_clusterfile_is_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    cluster = CLUSTER | {"a": CLUSTER["a"] | change}
    with pytest.raises(InputError, match=f"clusterfile.json: .*{message}"):
        load_devices(*write_cluster(tmp_path, "a slots=4\nb slots=4\n", cluster))


@given(st.text(max_size=40))
def test_any_text_is_a_hostfile_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    files = write_cluster(tmp_path_factory.mktemp("hosts"), "", "{}")
    files[0].write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError):
        load_devices(*files)


def write_profile(folder: Path, name: str, content: Any = PROFILE) -> None:
    folder.joinpath(name).write_text(json.dumps(content))


def test_profiles_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("V100_tp1_bs1", "A100_tp2_bs1", "A100_tp1_bs2", "A100_tp1_bs16"):
        write_profile(tmp_path, f"DeviceType.{name}.json")
    (tmp_path / "README").write_text("not a profile")
    folder = ProfileFolder.load(tmp_path)
    names = [str(key) for key in folder.profiles]
    assert names == sorted(names) and len(names) == 4
    key, profile = folder.first
    assert (key.device_type, key.tensor_parallel, key.batch_size) == ("A100", 1, 16)
    assert profile.outside_layers_ms == 1.0
    assert folder.num_layers == 2


@pytest.mark.parametrize(
    "name", ["A100_tp1_bs1.json", "DeviceType.A_1_tp1_bs1.json", "DeviceType.A_tp0_bs1.json"]
)
def test_a_file_that_is_no_profile_by_name_is_refused(tmp_path: Path, name: str) -> None:
    write_profile(tmp_path, name)
    with pytest.raises(InputError, match="is no name of a profile, expected DeviceType"):
        ProfileFolder.load(tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("forward_backward_time_ms", None, "forward_backward_time_ms"),
        ("optimizer_time_ms", -1, "optimizer_time_ms"),
        ("layer_compute_total_ms", [1.0, "x"], "layer_compute_total_ms"),
        ("layer_compute_total_ms", [], "expected at least 1"),
        ("layer_compute_total_ms", [1.0, 2.0, 3.0], "parameters_per_layer_bytes has 2 layers"),
        ("speed", 1, "speed"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(
    tmp_path: Path, place: str, value: Any, message: str
) -> None:
    content = PROFILE | {"execution_time": PROFILE["execution_time"] | {place: value}}
    write_profile(tmp_path, "DeviceType.A_tp1_bs1.json", content)
    if message.startswith("parameters"):
        message = "layer_memory_total_mb has 2 layers, expected 3"
    with pytest.raises(InputError, match=f"DeviceType.A_tp1_bs1.json: .*{message}"):
        ProfileFolder.load(tmp_path)


def test_a_missing_field_no_json_a_missing_folder_and_doubles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no"):
        ProfileFolder.load(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        ProfileFolder.load(tmp_path / "none")
    path = tmp_path / "DeviceType.A_tp1_bs1.json"
    for text in ("{", "[]", '{"model": 3}', "\xff", "[" * 100000):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(InputError, match=r"DeviceType.A_tp1_bs1.json: "):
            ProfileFolder.load(tmp_path)
    write_profile(tmp_path, path.name)
    write_profile(tmp_path, "DeviceType.a_tp1_bs1.json")
    with pytest.raises(InputError, match="is a second profile of"):
        ProfileFolder.load(tmp_path)
