"""Saving: at once or in the background; what many ranks hold is written once; a failure reaches all."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from stagewright.runtime.storage.checkpoint import load_checkpoint
from stagewright.runtime.storage.folders import newest_checkpoint, newest_step

RankPool = Any
MakePackage = Any


def names_in(checkpoint: Path) -> list[str]:
    """Return every tensor's name in a checkpoint, as often as it is stored."""
    names: list[str] = []
    for file_name in load_checkpoint(checkpoint).files:
        names += load_file(checkpoint / file_name)
    return sorted(names)


def test_background_checkpoints_are_those_written_at_once_and_resume_bitwise(
    rank_pool: RankPool, make_package: MakePackage, tmp_path: Path
) -> None:
    package = make_package("resnet", [2, 1], 3, "1f1b")

    def train(folder: str, **options: Any) -> list[float]:
        common = {"epochs": 1, "evaluate": False, "checkpoint_folder": tmp_path / folder, "keep": 9}
        histories = rank_pool.run(
            "training",
            3,
            options={**common, "checkpoint_every": 1, **options},
            settings={"optimizer": "adamw"},
            **package.arguments,
        )
        return list(histories[0].losses)

    whole = train("sync", max_steps=4)
    first = train("async", max_steps=2, checkpoint_async=True)
    assert first + train("async", max_steps=4, checkpoint_async=True, resume=True) == whole
    found = {}
    for folder in ("sync", "async"):
        assert newest_step(tmp_path / folder) == 4
        newest = newest_checkpoint(tmp_path / folder)
        assert newest is not None
        names = names_in(newest)
        assert len(set(names)) == len(names)
        found[folder] = {
            key: tensor
            for name in load_checkpoint(newest).files
            for key, tensor in load_file(newest / name).items()
        }
    assert found["sync"].keys() == found["async"].keys()
    assert all(found["sync"][key].equal(found["async"][key]) for key in found["sync"])


@pytest.mark.parametrize("in_background", [False, True])
def test_a_rank_that_cannot_write_is_named_on_every_rank_and_the_older_checkpoint_stays(
    rank_pool: RankPool, make_package: MakePackage, tmp_path: Path, in_background: bool
) -> None:
    package = make_package("mlp", [1, 1], 2, "1f1b")
    told = rank_pool.run(
        "training_on_a_full_disk",
        2,
        timeout_s=5.0,
        folder=str(tmp_path),
        victim=1,
        in_background=in_background,
        settings={},
        **package.arguments,
    )
    assert newest_step(tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    for text in told:
        assert "the checkpoint after step 3: rank 1: " in text
        assert "rank1.safetensors: cannot be written: File too large" in text
