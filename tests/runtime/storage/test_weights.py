"""Weights: what is written is the original's whole state dict, whatever the plan holds of it."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from stagewright.task import load_task

RankPool = Any
MakePackage = Any
TASK = str(Path(__file__).parent / "mixed_task.py")


def trained(
    rank_pool: RankPool, package: Any, output: Path, **options: Any
) -> dict[str, torch.Tensor]:
    """Train some steps and return what was written."""
    settings = options.pop("settings", {})
    options = {"epochs": 1, "max_steps": 2, "evaluate": False, **options}
    rank_pool.run(
        "trained_weights",
        package.num_ranks,
        options=options,
        output=str(output),
        settings=settings,
        **package.arguments,
    )
    return dict(load_file(output))


def built() -> torch.nn.Module:
    torch.manual_seed(0)
    model: torch.nn.Module = load_task(TASK).build()
    return model


def test_trained_weights_load_strictly_into_a_model_with_unused_and_aliased_parts(
    rank_pool: RankPool, make_package: MakePackage, tmp_path: Path
) -> None:
    package = make_package(TASK, [1, 2, 1], 3, "1f1b")
    found = trained(rank_pool, package, tmp_path / "weights.safetensors")
    initial = built().state_dict()
    built().load_state_dict(found)
    for name in ("unused.weight", "unused.running_var", "frozen.weight"):
        assert torch.equal(found[name], initial[name])
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(found[f"other_name.{name}"], found[f"blocks.1.norm.{name}"])
        assert not torch.equal(found[f"other_name.{name}"], initial[f"other_name.{name}"])
    assert torch.equal(found["head.weight"], found["embedding.weight"])


def test_weights_of_unused_parts_come_from_the_given_file_and_pass_through_a_checkpoint(
    rank_pool: RankPool, make_package: MakePackage, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    given = load_task(TASK).build().state_dict()
    del given["head.weight"]  # as safetensors' save_model leaves out a tied name
    save_file({name: t.clone() for name, t in given.items()}, tmp_path / "given.safetensors")
    settings = {"weights": tmp_path / "given.safetensors"}
    package = make_package(TASK, [1, 1], 2, "gpipe")
    options = {"checkpoint_folder": tmp_path / "saved"}
    first = trained(rank_pool, package, tmp_path / "a", settings=settings, **options)
    assert torch.equal(first["unused.weight"], given["unused.weight"])
    other_plan = make_package(TASK, [1], 2, "gpipe")
    resumed = trained(rank_pool, other_plan, tmp_path / "b", resume=True, **options)
    assert set(resumed) == set(first) == set(built().state_dict())
    for name, tensor in first.items():
        assert torch.equal(resumed[name], tensor)
