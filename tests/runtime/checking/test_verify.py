"""stagewright verify: passes generated plans, names what is wrong with a changed one."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from stagewright.cli import run
from stagewright.runtime.checking.verify_command import main

MakePackage = Any


def verify(*arguments: str) -> int:
    return run("stagewright verify", main, arguments)


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("task", ["digits_cnn", "gpt"])
def test_generated_stages_pass_dropout_included(
    make_package: MakePackage, capsys: pytest.CaptureFixture[str], tmp_path: Path, task: str
) -> None:
    package = make_package(task, [1], 3, "1f1b")
    save = ("--save", str(tmp_path / "one.safetensors"))
    assert verify(str(package.directory), "--task", package.task, "--json", *save) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["passed"] is True
    assert [result["dtype"] for result in printed["dtypes"]] == ["float64", "float32"]
    assert all(result["num_gradients"] > 5 for result in printed["dtypes"])
    saved = load_file(tmp_path / "one.safetensors")
    assert saved["losses"].shape == (3,)
    assert sum(name.startswith("gradient:") for name in saved) >= 5


def test_it_starts_its_own_ranks(
    make_package: MakePackage, capfd: pytest.CaptureFixture[str]
) -> None:
    package = make_package("mlp", [1, 2], 3, "1f1b")
    arguments = (str(package.directory), "--task", package.task, "--schedule", "zero-bubble")
    assert verify(*arguments) == 0
    assert "one step on 3 ranks against one process" in capfd.readouterr().out


def test_a_changed_stage_fails_and_the_worst_gradient_is_named(
    make_package: MakePackage, capsys: pytest.CaptureFixture[str]
) -> None:
    package = make_package("mlp", [1], 2, "1f1b")
    stage = package.directory / "stage0.py"
    head, _, tail = stage.read_text().rpartition("return x")
    stage.write_text(f"{head}return x * 1.001{tail}")
    assert verify(str(package.directory), "--task", package.task) == 1
    out = capsys.readouterr().out
    assert "FAILED" in out
    assert ".weight" in out or ".bias" in out


def test_a_task_without_loss_and_dataset_is_verified_with_its_example_inputs_in_mixed_precision(
    make_package: MakePackage, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    package = make_package("mlp", [1, 1], 2, "1f1b", "bfloat16")
    bare = tmp_path / "bare.py"
    bare.write_text("from stagewright.models.mlp import build, example_input\n")
    assert verify(str(package.directory), "--task", str(bare), "--json") == 0
    printed = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert [(r["dtype"], r["passed"]) for r in printed["dtypes"]] == [
        ("float64", True),
        ("bfloat16", True),
    ]


def test_ranks_that_refuse_a_task_give_their_status_and_one_line_each(
    make_package: MakePackage, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    package = make_package("mlp", [1, 1], 2, "1f1b")
    other = tmp_path / "other.py"
    other.write_text("import torch\n\n\ndef build():\n    return torch.nn.Linear(3, 3)\n")
    assert verify(str(package.directory), "--task", str(other)) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("but the plan was made for a model with" in line for line in lines)


def test_a_device_that_is_not_there_is_refused_before_ranks_start(
    make_package: MakePackage, capfd: pytest.CaptureFixture[str]
) -> None:
    package = make_package("mlp", [1, 1], 2, "1f1b")
    directory, task = str(package.directory), package.task
    assert verify(directory, "--task", task, "--device", "abacus") == 2
    assert capfd.readouterr().err.count("\n") == 1
