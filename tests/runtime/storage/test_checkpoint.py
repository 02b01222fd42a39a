"""Checkpoints: a resumed run is the same run, under any plan; a half-written checkpoint is none."""

from pathlib import Path
from typing import Any

import pytest

from stagewright.document import InputError
from stagewright.runtime.storage.checkpoint import load_checkpoint
from stagewright.runtime.storage.folders import newest_checkpoint

RankPool = Any
MakePackage = Any


def losses_of(histories: list[Any]) -> list[float]:
    assert all(history.losses == histories[0].losses for history in histories)
    return list(histories[0].losses)


@pytest.mark.parametrize(("optimizer", "its_class"), [("sgd", "SGD"), ("adamw", "AdamW")])
def test_a_resumed_run_continues_bitwise_and_has_the_loss_of_its_whole_epoch(
    rank_pool: RankPool,
    make_package: MakePackage,
    tmp_path: Path,
    optimizer: str,
    its_class: str,
) -> None:
    package = make_package("gpt", [2, 1], 3, "1f1b")

    def train(name: str, **options: Any) -> Any:
        settings = {"optimizer": name, "learning_rate": 0.01}
        all_options = {"epochs": 1, "evaluate": False, **options}
        histories = rank_pool.run(
            "training", 3, options=all_options, settings=settings, **package.arguments
        )
        losses_of(histories)
        return histories[0]

    whole = train(optimizer, max_steps=6)
    first = train(optimizer, max_steps=4, checkpoint_folder=tmp_path)
    second = train(its_class, max_steps=6, checkpoint_folder=tmp_path, resume=True)
    assert first.losses + second.losses == whole.losses
    assert second.epochs == whole.epochs
    assert whole.epochs[0].train_loss == pytest.approx(sum(whole.losses) / 6)


def test_a_run_resumes_under_another_plan(
    rank_pool: RankPool, make_package: MakePackage, tmp_path: Path
) -> None:
    def train(replicas: list[int], **options: Any) -> list[float]:
        package = make_package("resnet", replicas, 4, "1f1b")
        arguments = {"settings": {"optimizer": "adam"}, **package.arguments}
        ranks = package.num_ranks
        return losses_of(
            rank_pool.run(
                "training", ranks, options={"epochs": 1, "evaluate": False, **options}, **arguments
            )
        )

    whole = train([1, 1, 1], max_steps=5)
    train([1, 1, 1], max_steps=3, checkpoint_folder=tmp_path)
    resumed = train([1, 1], max_steps=5, checkpoint_folder=tmp_path, resume=True)
    assert resumed == pytest.approx(whole[3:], rel=1e-5)


def test_only_the_newest_complete_checkpoints_are_kept_and_loaded(
    rank_pool: RankPool, make_package: MakePackage, tmp_path: Path
) -> None:
    package = make_package("mlp", [1, 1], 2, "1f1b")
    options = {
        "epochs": 1,
        "evaluate": False,
        "max_steps": 5,
        "checkpoint_folder": tmp_path,
        "checkpoint_every": 1,
    }
    rank_pool.run("training", 2, options=options, settings={}, **package.arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]
    (tmp_path / "step-00000009").mkdir()
    (tmp_path / ".step-00000010.partial").mkdir()
    newest = newest_checkpoint(tmp_path)
    assert newest == tmp_path / "step-00000005"
    assert load_checkpoint(newest).step == 5


def test_a_checkpoint_of_another_batch_size_or_model_is_refused(
    rank_pool: RankPool, make_package: MakePackage, tmp_path: Path
) -> None:
    def train(task: str, num_microbatches: int, **options: Any) -> None:
        package = make_package(task, [1], num_microbatches, "1f1b")
        all_options = {
            "epochs": 1,
            "evaluate": False,
            "max_steps": 1,
            "checkpoint_folder": tmp_path,
            **options,
        }
        rank_pool.run("training", 1, options=all_options, settings={}, **package.arguments)

    train("mlp", 2)
    with pytest.raises(AssertionError, match=r"InputError.*batch_size is 8, but this run has 12"):
        train("mlp", 3, resume=True)
    with pytest.raises(AssertionError, match=r"InputError.*has no tensor"):
        train("resnet", 2, resume=True)


def test_a_checkpoint_that_is_no_json_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.json").write_text("{")
    with pytest.raises(InputError, match=r"checkpoint\.json: is not valid JSON"):
        load_checkpoint(tmp_path)
