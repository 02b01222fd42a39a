"""Losses, gradients and weights of a pipeline against one process: a plain loop over the original model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stagewright.optimizer.codegen.package import generate

from .one_process import one_process, relative_difference, replica_mixes, total_of

RankPool = Any
MakePackage = Any
FLOAT64 = {"dtype": "float64"}


MODELS = ("digits_cnn", "resnet", "gpt.py:build_without_dropout")


EVERY_MIX = [mix for num_ranks in range(1, 5) for mix in replica_mixes(num_ranks)]
CASES: list[tuple[str, list[Any], int, str]] = [
    *(
        (model, mix, 3 + index % 3, ("1f1b", "gpipe")[index % 2])
        for model in MODELS
        for index, mix in enumerate(EVERY_MIX)
    ),
    *((model, mix, 4, "zero-bubble") for model in MODELS for mix in ([1, 1, 1], [2, 1], [1, 2])),
    # unequal shares, more replicas than micro-batches, a single micro-batch
    ("gpt.py:build_without_dropout", [[2, 1], 1], 6, "1f1b"),
    ("digits_cnn", [[1, 2], [1, 1]], 7, "1f1b"),
    ("resnet", [[3, 1], 1], 5, "gpipe"),
    ("digits_cnn", [4], 3, "1f1b"),
    ("resnet", [2, 1, 1], 1, "1f1b"),
]


@pytest.mark.parametrize(("task", "replicas", "num_microbatches", "schedule"), CASES)
def test_float64_gradients_equal_one_process(
    rank_pool: RankPool,
    make_package: MakePackage,
    task: str,
    replicas: list[Any],
    num_microbatches: int,
    schedule: str,
) -> None:
    package = make_package(task, replicas, num_microbatches, schedule)
    results = rank_pool.run("gradients", package.num_ranks, settings=FLOAT64, **package.arguments)
    losses, model = one_process(
        package.task, package.microbatch_size, num_microbatches, torch.float64
    )
    expected = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    found: dict[str, Any] = {}
    for _, named in results:
        for name, gradient in named.items():
            if name in found:
                np.testing.assert_array_equal(gradient, found[name])
            found[name] = gradient
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert gradient is not None
        assert relative_difference(found[name], gradient.numpy()) <= 1e-12, name
    assert total_of([losses for losses, _ in results]) == pytest.approx(losses[0], rel=1e-12)


def test_a_rank_that_runs_two_stages_trains_the_weights_they_share(
    rank_pool: RankPool, make_package: MakePackage, tmp_path: Path
) -> None:
    task = "gpt.py:build_without_dropout"
    package = make_package(task, [1, 1, 1], 4, "1f1b")
    plan = package.directory.parent / "plan.json"
    content = json.loads(plan.read_text())
    content["stages"][2]["replicas"][0]["rank"] = 0
    (plan.parent / "folded.json").write_text(json.dumps(content))
    generate(plan.parent / "folded.json", tmp_path / "stages")
    arguments = {"directory": str(tmp_path / "stages"), "task": package.task}
    results = rank_pool.run("steps", 2, num_steps=4, settings=FLOAT64, **arguments)
    expected, _ = one_process(package.task, package.microbatch_size, 4, torch.float64, num_steps=4)
    found = [total_of([losses[step] for losses, _ in results]) for step in range(4)]
    assert found == pytest.approx(expected, rel=1e-10)
    state = results[0][1]
    np.testing.assert_array_equal(state["head.weight"], state["embedding.weight"])


@pytest.mark.parametrize(
    ("task", "replicas", "num_steps"),
    [
        ("digits_cnn", [1, 2], 20),
        ("resnet", [1, 1, 1], 5),
        ("gpt.py:build_without_dropout", [2, 1], 20),
    ],
)
def test_float32_losses_equal_one_process(
    rank_pool: RankPool,
    make_package: MakePackage,
    task: str,
    replicas: list[Any],
    num_steps: int,
) -> None:
    """Where training does not amplify rounding: it does at twice this rate (5e-5 for digits_cnn on one CPU).

    Of resnet few steps: its many BatchNorms over four samples amplify any rounding from step to step.
    """
    package = make_package(task, replicas, 4, "1f1b")
    results = rank_pool.run(
        "steps",
        package.num_ranks,
        num_steps=num_steps,
        settings={"learning_rate": 0.005},
        **package.arguments,
    )
    expected, _ = one_process(
        package.task,
        package.microbatch_size,
        4,
        torch.float32,
        num_steps=num_steps,
        optimizer_of=lambda parameters: torch.optim.SGD(parameters, lr=0.005, momentum=0.9),
    )
    found = [total_of([losses[step] for losses, _ in results]) for step in range(num_steps)]
    assert found == pytest.approx(expected, rel=1e-5)


def test_dropout_does_not_depend_on_the_plan(
    rank_pool: RankPool, make_package: MakePackage
) -> None:
    found = []
    for replicas in ([1], [2, 1], [1, 1, 2]):
        package = make_package("gpt", replicas, 4, "1f1b")
        results = rank_pool.run(
            "gradients", package.num_ranks, settings=FLOAT64, **package.arguments
        )
        found.append(total_of([losses for losses, _ in results]))
    without = make_package("gpt.py:build_without_dropout", [1], 4, "1f1b")
    (result,) = rank_pool.run("gradients", 1, settings=FLOAT64, **without.arguments)
    assert found[1:] == pytest.approx(found[:1] * 2, rel=1e-12)
    assert abs(total_of([result[0]]) - found[0]) > 1e-6, "dropout drew nothing"


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_all_replicas_and_tied_weights_stay_equal(
    rank_pool: RankPool, make_package: MakePackage, optimizer: str
) -> None:
    package = make_package("gpt.py:build_without_dropout", [2, 1], 3, "1f1b")
    settings = {"optimizer": optimizer, "weight_decay": 0.01}
    results = rank_pool.run("steps", 3, num_steps=3, settings=settings, **package.arguments)
    embedding = [state["embedding.weight"] for _, state in results if "embedding.weight" in state]
    heads = [state["head.weight"] for _, state in results if "head.weight" in state]
    assert len(embedding) == 2
    assert len(heads) == 1
    for copy in (*embedding[1:], *heads):
        np.testing.assert_array_equal(copy, embedding[0])


def test_running_statistics_of_one_replica_are_those_of_one_process(
    rank_pool: RankPool, make_package: MakePackage
) -> None:
    package = make_package("digits_cnn", [1, 1], 4, "1f1b")
    results = rank_pool.run("steps", 2, num_steps=1, settings=FLOAT64, **package.arguments)
    _, model = one_process(package.task, package.microbatch_size, 4, torch.float64)
    state = {name: value for _, part in results for name, value in part.items()}
    assert set(state) == set(model.state_dict())
    for name, buffer in model.named_buffers():
        np.testing.assert_allclose(state[name], buffer.numpy(), rtol=1e-12)


def test_running_statistics_of_replicas_are_their_weighted_mean(
    rank_pool: RankPool, make_package: MakePackage
) -> None:
    package = make_package("digits_cnn", [[2, 1], 1], 3, "1f1b")
    results = rank_pool.run("steps", 3, num_steps=1, settings=FLOAT64, **package.arguments)
    first, second = results[0][1], results[1][1]
    names = [name for name in first if "running" in name or "num_batches" in name]
    assert names
    for name in names:
        np.testing.assert_array_equal(first[name], second[name])
    assert {int(first[name]) for name in names if "num_batches" in name} == {3}


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_units_in_flight_are_those_of_the_schedule(
    rank_pool: RankPool, make_package: MakePackage, schedule: str
) -> None:
    package = make_package("mlp", [1, 1], 6, schedule)
    found = rank_pool.run("peak_units", 2, settings={}, **package.arguments)
    assert found == [package.plan.rows.units_in_flight(rank, rank) for rank in range(2)]
    assert found == ([6, 6] if schedule == "gpipe" else [2, 1])


def test_a_long_training_keeps_the_times_of_its_last_steps_only(
    rank_pool: RankPool, make_package: MakePackage
) -> None:
    package = make_package("mlp", [1], 2, "1f1b")
    (found,) = rank_pool.run(
        "measured_steps", 1, num_steps=7, keep=4, settings={}, **package.arguments
    )
    assert found == (4, 7, 4)
