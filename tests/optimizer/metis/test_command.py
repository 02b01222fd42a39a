"""The metis command with real files: what it prints, writes and refuses."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stagewright.cli import run
from stagewright.optimizer.metis.command import main
from stagewright.profiler import synthetic

CLUSTERFILE = Path(__file__).resolve().parents[3] / "hete_files" / "metis" / "clusterfile.json"


@pytest.fixture(scope="session")
def row_1(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The flags of row 1, with the files that the generators make."""
    folder = tmp_path_factory.mktemp("row1")
    profiles, hosts = str(folder / "profile"), str(folder / "hostfile")
    synthetic.main(["gen_synth_data", "10", "128", "--profile_dir", profiles])
    synthetic.main(["gen_hostfile", "16", "--hostfile_path", hosts])
    return [
        *("--model_name", "GPT", "--model_size", "1.5B", "--num_layers", "10", "--gbs", "128"),
        *("--hidden_size", "4096", "--sequence_length", "1024", "--vocab_size", "51200"),
        *("--hostfile_path", hosts, "--clusterfile_path", str(CLUSTERFILE)),
        *("--profile_data_path", profiles, "--max_profiled_tp_degree", "128"),
        *("--max_profiled_batch_size", "128", "--min_group_scale_variance", "1"),
        *("--max_permute_len", "128", "--home_dir", str(folder), "--attention_head_size", "32"),
    ]


def json_of(argv: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*argv, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(
    ("flag", "count"), [("--no-use_strat", 612), ("--use-strat", 562), ("--use_strat", 562)]
)
def test_the_search_prints_its_count_its_best_plan_and_whether_that_can_run(
    row_1: list[str], capsys: pytest.CaptureFixture[str], flag: str, count: int
) -> None:
    argv = [*row_1, "--trials", "2", flag]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert f"\ncount: {count}\n" in text
    assert "\n1, 1793.551254272461, [A100, V100], [32], [(1, 32)], 1, [0, 10]\n" in text
    assert "executable: no: a tensor-parallel group has several device types" in text
    assert "4, 2371.458238" in text
    found = json_of(argv, capsys)
    assert (found["count"], found["trials"], found["solver"]) == (count, 2, "metis")
    assert found["best_executable"]["layer_partition"] == [0, 3, 10]
    assert found["provenance"] == {"cost": "predicted", "average_ms": "measured"}


def test_exact_prints_the_proven_optimum(
    row_1: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*row_1, "--exact"]) == 0
    assert "proven optimal under Metis's formula" in capsys.readouterr().out
    found = json_of([*row_1, "--exact", "--fit-devices"], capsys)
    assert found["objective_ms"] == found["bound_ms"] == pytest.approx(2303.503, abs=1e-3)
    assert (found["gap"], found["cost_model"], found["solver"]) == (0.0, "metis", "exact")
    assert found["plan"]["executable"]
    first, second = found["stages"]
    assert first["layers"] == [0, 1] and second["layers"] == list(range(2, 10))
    assert second["replicas"][3] == {"device_type": "A100", "ranks": [19], "share": 1}


def test_the_log_holds_every_plan_with_metis_columns(
    row_1: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json_of([*row_1, "--trials", "1", "--log_path", str(tmp_path)], capsys)
    assert found["files"] == [str(tmp_path / "GPT_1.5B.csv")]
    with (tmp_path / "GPT_1.5B.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == found["num_plans"] == 206
    assert sum(row["executable"] == "True" for row in rows) == found["num_executable"] == 60
    assert rows[3]["strategies"] == "[(16, 1), (16, 1)]"
    assert rows[3]["layer_partition"] == "[0, 3, 10]"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trials", "0"], "--trials is 0"),
        (["--exact", "--time-limit", "nan"], "--time-limit is nan"),
        (["--exact", "--log_path", "x"], "leave out --log_path"),
        (["--fit-devices"], "--fit-devices needs --exact"),
        (["--num_layers", "12"], "profiles have 10 layers, --num_layers is 12"),
        (["--max_profiled_batch_size", "256", "--gbs", "256"], "A100_tp1_bs256.json is missing"),
        (["--model_size", "a/b"], "leave out the '/'"),
        (["--hostfile_path", "none"], "none: cannot be read"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    row_1: list[str], capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run("metis", main, [*row_1, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_result_does_not_depend_on_the_hash_seed(row_1: list[str]) -> None:
    found = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "stagewright.optimizer.metis", *row_1, "--exact", "--json"]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        output = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
        content = json.loads(output)
        del content["seconds"]
        found.add(json.dumps(content))
    assert len(found) == 1
