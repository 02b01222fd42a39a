"""The picture of the cut graph."""

from typing import Any

import pytest
import torch
from torch import nn

from stagewright.cli import run
from stagewright.optimizer.codegen.command import main
from stagewright.plan import Plan


def test_every_layer_is_in_its_stage_and_what_crosses_is_red(
    workshop: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh())
    path = workshop.plan(workshop.trace(model, lambda size: torch.zeros(size, 4)), [1, 3])
    dot = workshop.folder / "cut.dot"
    arguments = (str(path), "-o", str(workshop.folder / "stages"), "--dot", str(dot))
    assert run("stagewright generate", main, arguments) == 0
    assert f"drew {dot}" in capsys.readouterr().out
    source = dot.read_text()
    plan = Plan.load(path)
    for index, stage in enumerate(plan.stages):
        box = source.split(f"cluster_{index}")[1].split("}")[0]
        assert [f"stage{index}layer{number}" in box for number in range(len(stage.layers))]
        assert all(f"label={layer}" in box or f'label="{layer}"' in box for layer in stage.layers)
    assert source.count("color=red") == sum(len(border.values) for border in plan.borders) == 2
