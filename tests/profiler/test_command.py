"""The command line: one object with --json, the same figures for people, one line for a wrong input."""

import json
from pathlib import Path

import pytest

from stagewright.cli import main
from stagewright.graph import LayerGraph

MLP = ["profile", "stagewright.models.mlp", "--device-type", "slow", "-b", "2", "--repeats", "1"]


def test_json_is_one_object_and_a_picture_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph, dot = tmp_path / "graph.json", tmp_path / "graph.dot"
    plot = tmp_path / "curves.png"
    arguments = ["-o", str(graph), "--dot", str(dot), "--emulate-slowdown", "2", "--json",
                 "--plot", str(plot), "--peak-tflops", "0.5", "--reuse-identical",
                 "--uncertainty", "0.5"]  # fmt: skip
    assert main([*MLP, *arguments]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["emulated_slowdown"] == 2
    assert content["microbatches"][0]["sum_over_whole"] > 0
    assert content["num_layers"] == len(LayerGraph.load(graph).steps)
    assert {str(dot), str(plot)} <= set(content["files"])
    microbatch = content["microbatches"][0]
    assert microbatch["mfu"] == microbatch["tflops_per_s"] / 0.5 > 0
    assert "emulated x 2" in dot.read_text() and "layer0 -> layer1" in dot.read_text()


def test_people_are_told_that_times_are_emulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "graph.json")
    assert main([*MLP, "-o", output, "--emulate-slowdown", "2"]) == 0
    assert "times emulated: measured x 2" in capsys.readouterr().out
    assert main([*MLP, "-o", output]) == 0
    assert "times measured" in capsys.readouterr().out


def test_a_wrong_input_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = tmp_path / "branching.py"
    task.write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x if x.sum() > 0 else -x\n"
        "build = Net\n"
        "def example_input(batch_size):\n"
        "    return torch.ones(batch_size, 2)\n"
    )
    arguments = [str(task), "--device-type", "a", "-b", "2", "-o", str(tmp_path / "graph.json")]
    assert main(["profile", *arguments]) == 2
    error = capsys.readouterr().err
    assert f"{task}:4: cannot be traced" in error and error.count("\n") == 1
    assert not (tmp_path / "graph.json").exists()
