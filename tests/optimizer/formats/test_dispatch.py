"""stagewright optimize FILE --format NAME reaches the planner of that format."""

import json
from pathlib import Path

import pytest

from stagewright.cli import run
from stagewright.optimizer.command import main
from stagewright.profiler.synthetic import main as synthesize


def optimize(*arguments: str) -> int:
    return run("stagewright optimize", main, arguments)


def test_an_unknown_format_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert optimize("x.json", "--format", "alpa") == 2
    assert (
        "--format is 'alpa', expected one of dnn-partitioning, piper, metis"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["dnn-partitioning", "piper"])
def test_a_missing_file_is_named(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert optimize("nonesuch.json", f"--format={name}") == 2
    assert "nonesuch.json" in capsys.readouterr().err


def test_a_folder_of_metis_profiles_is_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profiles = tmp_path / "profiles"
    hostfile = tmp_path / "hostfile"
    profiles.mkdir()
    assert synthesize(["gen_synth_data", "10", "128", "--profile_dir", str(profiles)]) == 0
    assert synthesize(["gen_hostfile", "16", "--hostfile_path", str(hostfile)]) == 0
    capsys.readouterr()
    cluster = Path(__file__).parents[3] / "hete_files" / "metis" / "clusterfile.json"
    sizes = ("--hidden_size", "4096", "--sequence_length", "1024", "--vocab_size", "51200")
    limits = ("--max_profiled_tp_degree", "128", "--max_profiled_batch_size", "128")
    model = ("--model_name", "GPT", "--num_layers", "10", "--gbs", "128", *sizes, *limits)
    files = ("--hostfile_path", str(hostfile), "--clusterfile_path", str(cluster))
    status = optimize(
        str(profiles), "--format", "metis", *model, *files, "--trials", "1", "--exact", "--json"
    )
    printed = json.loads(capsys.readouterr().out)
    assert status == 0
    assert "2303.503" in json.dumps(printed)
