"""The command line of the demos: one object, CSV and PNG, one line for wrong options."""

import json
from pathlib import Path

import pytest

from stagewright.cli import run
from stagewright.optimizer.partition.command import SOLVERS, main


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_prints_one_object_and_writes_its_trace(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, solver: str
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    csv, png = tmp_path / "t.csv", tmp_path / "t.png"
    options = ["--devices", "3", "--csv", str(csv), "--png", str(png), "--json"]
    assert main([solver, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["solver"] == solver and found["objective_ms"] is None
    assert found["value"] == found["bound"] == 2.0 and found["gap"] == 0.0
    assert sorted(node for stage in found["stages"] for node in stage["layers"]) == list(range(201))
    assert len(csv.read_text().splitlines()) == 1 + len(found["trace"])
    assert png.read_bytes().startswith(b"\x89PNG")


def test_people_read_the_value_its_proof_and_the_first_devices(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["exact", "--devices", "96", "--matrix", "intended"]) == 0
    text = capsys.readouterr().out
    assert "value 94.625, bound 94.625: proven optimal" in text
    assert "device 0: 2 nodes 0-1" in text and "93 devices more" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["exact", "--matrix", "intended"], "--matrix intended is for --devices 96"),
        (["local-search", "--starts", "0"], "--starts is 0, expected at least 1"),
        (["brute-force", "--seconds", "nan"], "--seconds is nan"),
    ],
)
def test_wrong_options_end_with_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run("demo", main, options) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
