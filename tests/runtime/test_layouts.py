"""Frozen parameters, stages without parameters, and ranks in any order: still one process's training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stagewright.optimizer.codegen.package import generate
from stagewright.runtime.training.batches import DataOrder
from stagewright.runtime.training.memory import storage_bytes
from stagewright.task import load_task

RankPool = Any
MakePackage = Any
TASK = str(Path(__file__).parent / "frozen_task.py")
SETTINGS = {"dtype": "float64", "optimizer": "adamw", "clip_norm": 0.5, "weight_decay": 0.1}


def with_ranks(package: Any, ranks: list[int], folder: Path) -> dict[str, str]:
    """Generate a package again with its replicas on other ranks; return what a job needs."""
    plan = package.directory.parent / "plan.json"
    content = json.loads(plan.read_text())
    replicas = [replica for stage in content["stages"] for replica in stage["replicas"]]
    for replica, rank in zip(replicas, ranks, strict=True):
        replica["rank"] = rank
    (plan.parent / "moved.json").write_text(json.dumps(content))
    generate(plan.parent / "moved.json", folder / "stages")
    return {"directory": str(folder / "stages"), "task": package.task}


def one_process(num_steps: int, num_microbatches: int) -> tuple[list[float], torch.nn.Module]:
    task = load_task(TASK)
    torch.manual_seed(0)
    model = task.build().double()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.1)
    data = task.call("dataset", "train")
    order = DataOrder(len(data), 4, num_microbatches, seed=0)
    losses = []
    for step in range(num_steps):
        parts = []
        for microbatch in range(num_microbatches):
            items = [data[index] for index in order.indices(0, step, microbatch)]
            x, y = (torch.stack([item[i] for item in items]) for i in range(2))
            part = task.call("loss", model(x.double()), y) / num_microbatches
            part.backward()
            parts.append(part.item())
        torch.nn.utils.clip_grad_norm_(trained, 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(sum(parts))
    return losses, model


@pytest.mark.parametrize(
    ("replicas", "ranks", "schedule"),
    [
        ([1, 1, 1, 1], [2, 0, 3, 1], "1f1b"),
        ([1, 1, 1, 1], [3, 2, 1, 0], "gpipe"),
        ([1, 2, 1], [2, 3, 0, 1], "zero-bubble"),
        ([1, 1, 1, 1], [1, 0, 1, 0], "1f1b"),  # two stages on each rank
    ],
)
def test_frozen_and_bare_stages_on_any_ranks_train_as_one_process(
    rank_pool: RankPool,
    make_package: MakePackage,
    tmp_path: Path,
    replicas: list[int],
    ranks: list[int],
    schedule: str,
) -> None:
    arguments = with_ranks(make_package(TASK, replicas, 4, schedule), ranks, tmp_path)
    num_ranks = len(set(ranks))
    results = rank_pool.run("steps", num_ranks, num_steps=3, settings=SETTINGS, **arguments)
    losses, model = one_process(3, 4)
    found = [sum(loss for own, _ in results for loss in own[step].values()) for step in range(3)]
    assert found == pytest.approx(losses, rel=1e-11)
    state = {name: value for _, part in results for name, value in part.items()}
    assert set(state) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        np.testing.assert_allclose(state[name], tensor.numpy(), rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("from_file", [False, True])
def test_no_rank_needs_much_more_memory_than_its_own_stage_to_build_it(
    rank_pool: RankPool, make_package: MakePackage, tmp_path: Path, from_file: bool
) -> None:
    package = make_package("gpt.py:build_deep", [1, 1, 1, 1], 4, "1f1b")
    settings: dict[str, Any] = {}
    mapped = 0
    model = load_task(package.task).build()
    if from_file:
        settings["weights"] = tmp_path / "weights.safetensors"
        save_file(model.state_dict(), settings["weights"])
        mapped = (
            settings["weights"].stat().st_size
        )  # Pages of a file: read where touched, no memory.
    found = rank_pool.run("peak_while_building", 4, settings=settings, **package.arguments)
    whole = storage_bytes(model.state_dict().values())
    # Without a file rank 0 builds the model that it hands out.
    for peak, own in found if from_file else found[1:]:
        assert whole > 3 * own
        assert own <= peak - mapped <= 1.35 * own
