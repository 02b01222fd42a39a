"""Synthetic profiles and hostfiles, as the published step counts were made with."""

import json
import subprocess
import sys
from functools import reduce
from operator import add
from pathlib import Path

import pytest

from stagewright.document import InputError
from stagewright.profiler.synthetic import hostfile_text, main, synthetic_profiles


@pytest.mark.parametrize("num_layers", [2, 10, 40])
def test_every_profile_adds_up(num_layers: int) -> None:
    for name, content in synthetic_profiles(num_layers, 128).items():
        times = content["execution_time"]
        layers = times["layer_compute_total_ms"]
        assert len(layers) == content["model"]["num_layers"] == num_layers, name
        between = times["between_forward_backward_time_ms"]
        assert times["forward_backward_time_ms"] == pytest.approx(between + sum(layers)), name
        parts = [
            "forward_backward_time_ms",
            "batch_generator_time_ms",
            "optimizer_time_ms",
            "layernorm_grads_all_reduce_time_ms",
            "embedding_grads_all_reduce_time_ms",
        ]
        assert times["total_time_ms"] == pytest.approx(sum(times[part] for part in parts)), name
        memory = content["execution_memory"]
        assert memory["total_memory"] == sum(memory["layer_memory_total_mb"]), name


def test_with_ten_layers_the_measured_profiles_come_back() -> None:
    profiles = synthetic_profiles(10, 4)
    times = profiles["DeviceType.A100_tp1_bs4.json"]["execution_time"]
    layers = [1.0962486267089844, *[116.56570434570312] * 8, 1.066446304321289]
    assert times["layer_compute_total_ms"] == layers
    whole = (1143.9790725708008 - reduce(add, layers)) + reduce(add, layers)
    assert times["forward_backward_time_ms"] == whole
    assert times["forward_backward_time_ms"] == pytest.approx(1143.9790725708008, rel=1e-15)
    parameters = profiles["DeviceType.V100_tp2_bs1.json"]["model"]["parameters"]
    assert parameters["total_parameters_bytes"] == 2405502976


def test_compute_scales_with_batch_size_and_degree_beyond_four_and_a_v100_is_slower() -> None:
    profiles = synthetic_profiles(20, 128)
    assert len(profiles) == 8 * 8 * 2

    def layers(device_type: str, degree: int, size: int) -> list[float]:
        content = profiles[f"DeviceType.{device_type}_tp{degree}_bs{size}.json"]
        found: list[float] = content["execution_time"]["layer_compute_total_ms"]
        return found

    assert layers("A100", 2, 128) == [32 * time for time in layers("A100", 2, 4)]
    assert layers("A100", 128, 2) == [time / 32 for time in layers("A100", 4, 2)]
    assert layers("A100", 64, 64) == [time / 16 * 16 for time in layers("A100", 4, 4)]
    assert layers("V100", 8, 8) == [3.5 * time for time in layers("A100", 8, 8)]
    memory = {str(content["execution_memory"]) for content in profiles.values()}
    assert len(memory) == 1


@pytest.mark.parametrize(("num_layers", "largest"), [(1, 128), (10, 2), (10, 96)])
def test_arguments_out_of_range_are_refused(num_layers: int, largest: int) -> None:
    with pytest.raises(InputError, match=r"(LAYERS|MAX) is \d+, expected"):
        synthetic_profiles(num_layers, largest)


def test_a_hostfile_has_as_many_nodes_of_each_type() -> None:
    assert hostfile_text(11) == "0.0.0.1 slots=4\n" * 2 + "0.0.0.4 slots=4\n" * 2
    with pytest.raises(InputError, match="N is 3, expected 4 or more"):
        hostfile_text(3)


def test_old_profiles_are_replaced_and_other_files_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "DeviceType.T4_tp1_bs1.json").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    argv = ["gen_synth_data", "3", "4", "--profile_dir", str(tmp_path), "--json"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["provenance"] == "emulated"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {Path(name).name for name in found["files"]} | {"notes.txt"}
    assert len(names) == 19


def test_it_runs_without_torch(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["torch"] = None  # importing it fails
from stagewright.profiler.synthetic import main
sys.exit(main(sys.argv[1:]))
"""
    argv = ["gen_hostfile", "8", "--hostfile_path", str(tmp_path / "hostfile")]
    run = subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "hostfile").read_text() == hostfile_text(8)
