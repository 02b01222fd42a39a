"""A grid of the sliced layers, through the command."""

import json
from pathlib import Path

import pytest

from stagewright.cli import main

COMMAND = ["profile", "stagewright.models.attention_slices", "--device-type", "a", "-b", "1"]


def test_every_point_is_measured_and_plotted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, plot = tmp_path / "grid.json", tmp_path / "grid.png"
    arguments = ["--grid", "layers=1,2", "width=64", "length=4,8", "context=0,1x,2x"]
    files = ["-o", str(table), "--plot", str(plot), "--json", "--repeats", "1"]
    assert main([*COMMAND, *arguments, *files, "--emulate-slowdown", "2"]) == 0
    content = json.loads(capsys.readouterr().out)
    points = [(p["layers"], p["length"], p["context"]) for p in content["points"]]
    assert points == [
        (n, i, j) for n in (1, 2) for i, contexts in ((4, (0, 4, 8)), (8, (0, 8, 16))) for j in contexts
    ]  # fmt: skip
    assert all(p["forward_ms"] > 0 and p["backward_ms"] > 0 for p in content["points"])
    assert content["emulated_slowdown"] == 2 and len(content["fits"]) == 2
    assert content["files"] == [str(table), str(plot)] and plot.exists()
    assert json.loads(table.read_text())["points"] == content["points"]


def test_a_task_without_a_grid_is_told_what_to_add(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["profile", "stagewright.models.mlp", "--device-type", "a", "-b", "1", "-o",
                 str(tmp_path / "grid.csv"), "--grid", "layers=1", "width=8", "length=4"]  # fmt: skip
    assert main(arguments) == 2
    assert "add it: grid_model(num_layers, width) returns" in capsys.readouterr().err
