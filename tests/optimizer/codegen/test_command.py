"""The command: one JSON object, or lines made from it; a wrong input is one line and status 2."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from stagewright.cli import main
from stagewright.document import sha256_of


def test_it_prints_what_it_wrote(workshop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    plan = workshop.plan(workshop.trace(model, lambda size: torch.rand(size, 4)), (2,))
    folder = workshop.folder / "made"
    assert main(["generate", str(plan), "-o", str(folder), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["plan_sha256"] == sha256_of(folder / "plan.json")
    assert [stage["file"] for stage in result["stages"]] == ["stage0.py", "stage1.py"]
    assert [stage["parameter_bytes"] for stage in result["stages"]] == [80, 40]
    assert result["stages"][0]["outputs"] == result["stages"][1]["inputs"] == ["1"]
    assert main(["generate", str(plan), "-o", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "stage1.py" in lines[2]


def test_a_wrong_input_is_one_line(workshop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(workshop.folder / "none.json"), "-o", "x"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("stagewright generate: ") and error.count("\n") == 1
