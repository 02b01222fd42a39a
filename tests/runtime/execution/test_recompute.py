"""Stages that run forward again: the same training, bit for bit, with fewer values kept."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stagewright.models.minkowski.engine.installed import why_unusable
from stagewright.optimizer.codegen.package import generate
from stagewright.runtime.execution.recompute import RecomputingRunner
from stagewright.runtime.execution.stage import StageRunner, UnitInputs
from stagewright.runtime.messages.values import Precision
from stagewright.runtime.storage.package import load_package, make_stage
from stagewright.schedule import Unit
from stagewright.task import load_task

RankPool = Any
MakePackage = Any
needs_engine = pytest.mark.skipif(why_unusable() is not None, reason=str(why_unusable()))
CPU = torch.device("cpu")


def recomputing(directory: Path, stages: list[int], folder: Path) -> Path:
    """Generate a plan again with some stages that run forward again; return the package."""
    plan = directory.parent / "plan.json"
    content = json.loads(plan.read_text())
    for stage in stages:
        content["stages"][stage]["recompute"] = True
    (plan.parent / "again.json").write_text(json.dumps(content))
    generate(plan.parent / "again.json", folder / "stages")
    return folder / "stages"


@pytest.mark.parametrize(
    ("task", "replicas", "stages", "schedule"),
    [
        ("resnet", [1, 1], [0, 1], "1f1b"),  # BatchNorm
        ("gpt", [2, 1], [0], "1f1b"),  # dropout
        ("gpt", [1, 1, 1], [1, 2], "zero-bubble"),
        pytest.param("minkowski/unet", [1, 2], [0, 1], "1f1b", marks=needs_engine),
    ],
)
def test_losses_weights_and_buffers_are_bit_equal(
    rank_pool: RankPool,
    make_package: MakePackage,
    tmp_path: Path,
    task: str,
    replicas: list[int],
    stages: list[int],
    schedule: str,
) -> None:
    package = make_package(task, replicas, 3, schedule)
    again = package.arguments | {"directory": str(recomputing(package.directory, stages, tmp_path))}
    runs = [
        rank_pool.run("steps", package.num_ranks, num_steps=3, settings={}, **arguments)
        for arguments in (package.arguments, again)
    ]
    for (losses, state), (losses_again, state_again) in zip(*runs, strict=True):
        assert losses == losses_again
        assert set(state) == set(state_again)
        for name, value in state.items():
            np.testing.assert_array_equal(value, state_again[name], err_msg=name)


class Squares(nn.Module):
    """A stage that autograd keeps a thousand values for."""

    inputs = ("x",)
    outputs: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1000))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((self.weight * x) ** 2).sum()


def test_a_unit_keeps_nothing_for_autograd_between_forward_and_backward() -> None:
    saved: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    modules = Squares(), Squares()
    precision = Precision("float32", "float32")
    runners = (
        RecomputingRunner(0, modules[0], (), precision, CPU),
        StageRunner(0, modules[1], (), precision, CPU),
    )
    for runner in runners:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            given = UnitInputs(1, {"x": torch.tensor(3.0)}, {}, lambda output: output)
            runner.forward(Unit(0), given)
            kept = list(saved)
            assert runner.units_held == 1
            runner.backward(Unit(0), {})
        assert bool(kept) == (type(runner) is StageRunner)
        assert runner.units_held == 0
        saved.clear()
    first, second = (module.weight.grad for module in modules)
    assert first is not None and second is not None
    assert torch.equal(first, second)


@needs_engine
def test_a_stage_that_runs_forward_again_builds_its_maps_again_and_holds_none_meanwhile(
    make_package: MakePackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the plan charges its whole forward twice."""
    from stagewright.models.minkowski.voxels import ME

    made: list[weakref.ref[Any]] = []
    make = ME.CoordinateManager

    def watched(*arguments: Any, **keywords: Any) -> Any:
        manager = make(*arguments, **keywords)
        made.append(weakref.ref(manager))
        return manager

    package = load_package(make_package("minkowski/unet", [1, 1], 2, "1f1b").directory)
    precision = Precision("float32", "float32")
    runners = []
    for index, kind in enumerate((StageRunner, RecomputingRunner)):
        stage = make_stage(package, index, lambda: pytest.fail(), torch.float32, CPU)
        for tensor in (*stage.parameters(), *stage.buffers()):
            nn.init.ones_(tensor)
        runners.append(kind(index, stage, package.plan.borders, precision, CPU))
    task = load_task(package.plan.task)
    inputs = {"points": task.call("example_input", 4)}
    sent = runners[0].forward(Unit(0), UnitInputs(4, inputs, {}, None))
    given = UnitInputs(4, inputs, {0: sent[1].detached()}, lambda output: output.square().mean())
    monkeypatch.setattr(ME, "CoordinateManager", watched)
    runners[1].forward(Unit(0), given)
    gc.collect()
    assert [reference() for reference in made] == [None]
    (gradients,) = runners[1].backward(Unit(0), {}).values()
    assert len(made) == 2 and all(gradient.isfinite().all() for gradient in gradients)
