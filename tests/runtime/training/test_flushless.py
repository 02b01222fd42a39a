"""Training without flush against a staleness simulator: one process that keeps every version of weights."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stagewright.document import InputError
from stagewright.flushless import versions_allowed, without_flush
from stagewright.models.minkowski.engine.installed import why_unusable
from stagewright.plan import Plan
from stagewright.runtime.training.batches import DataOrder
from stagewright.runtime.training.flushless import refuse_shared_parameters
from stagewright.scheduling import make_schedule, units_allowed
from stagewright.task import load_task

RankPool = Any
MakePackage = Any
NUM_STEPS = 4
OPTIMIZERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "SGD": ({"learning_rate": 0.05}, {"lr": 0.05, "momentum": 0.9}),
    "AdamW": ({"learning_rate": 0.01}, {"lr": 0.01, "weight_decay": 0.0}),
}
"""The session's settings, and the same for torch."""


def forward_versions(plan: Plan, name: str, window: int) -> list[list[int]]:
    """Return which version each stage uses for each micro-batch, read off the rows.

    A rank has as many updates behind it as windows whose backwards it has all done.
    """
    pipeline = without_flush(name, plan.pipeline(NUM_STEPS * window), window)
    found = [[0] * pipeline.num_microbatches for _ in plan.stages]
    for rank, row in make_schedule(name, pipeline).rows.items():
        route = pipeline.routes[row[0].stage] if row else ()
        left = [m for m, owner in enumerate(route) if owner == rank]
        for action in row:
            if action.kind == "B":
                left.remove(action.microbatch)
            else:
                number = action.microbatch // window
                closed = left[0] // window
                delayed = name == "pipedream-2bw"
                found[action.stage][action.microbatch] = max(0, number - 1) if delayed else closed
    return found


def stale_training(
    package: Any, name: str, window: int, optimizer: str, stage_of: dict[str, int]
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train the original model with stale weights; return the losses of the steps and the parameters."""
    task, plan = load_task(package.task), package.plan
    torch.manual_seed(0)
    model = task.build().double()
    loss_of, dataset = task.function("loss"), task.function("dataset")("train")
    order = DataOrder(len(dataset), plan.microbatch_size, window, seed=0)
    newest = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    torch_optimizer = getattr(torch.optim, optimizer)(newest.values(), **OPTIMIZERS[optimizer][1])
    versions = [{name: p.detach().clone() for name, p in newest.items()}]
    used = forward_versions(plan, name, window)
    losses = []
    for step in range(NUM_STEPS):
        total = 0.0
        for microbatch in range(window):
            number = step * window + microbatch
            stale = {
                name: versions[used[stage_of[name]][number]][name].clone().requires_grad_()
                for name in newest
            }
            items = [dataset[index] for index in order.indices(0, step, microbatch)]
            x, y = (torch.stack([torch.as_tensor(item[i]) for item in items]) for i in range(2))
            x = x.double() if x.is_floating_point() else x
            loss = loss_of(torch.func.functional_call(model, stale, x), y) / window
            gradients = torch.autograd.grad(loss, list(stale.values()))
            total += loss.item()
            for parameter, gradient in zip(newest.values(), gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        torch_optimizer.step()
        torch_optimizer.zero_grad()
        versions.append({name: p.detach().clone() for name, p in newest.items()})
        losses.append(total)
    return losses, versions[-1]


def difference(results: list[Any], expected: tuple[list[float], dict[str, torch.Tensor]]) -> float:
    """Return the largest relative difference of a loss or, to its tensor's largest entry, of a weight."""
    losses, weights = expected
    worst = 0.0
    for step, loss in enumerate(losses):
        found = sum(value for result in results for value in result[0][step].values())
        worst = max(worst, abs(found - loss) / abs(loss))
    for result in results:
        for name, value in result[1].items():
            if name in weights:
                one = weights[name].numpy()
                worst = max(worst, float(np.abs(value - one).max() / np.abs(one).max()))
    return worst


def stages_of(package: Any, results: list[Any]) -> dict[str, int]:
    """Return the stage of each tensor."""
    ranks = {r.rank: s for s, stage in enumerate(package.plan.stages) for r in stage.replicas}
    return {name: ranks[rank] for rank, result in enumerate(results) for name in result[1]}


needs_engine = pytest.mark.skipif(why_unusable() is not None, reason=str(why_unusable()))
CASES: list[Any] = [
    pytest.param("minkowski/unet", [1, 1, 1], 1, "pipedream", "SGD", marks=needs_engine),
    ("mlp", [1, 1], 1, "pipedream", "SGD"),
    ("digits_cnn", [1, 1, 1], 2, "pipedream", "AdamW"),
    ("resnet", [1, 1, 1, 1], 1, "pipedream", "SGD"),  # skips over stages
    ("gpt.py:build_deep", [2, 1], 2, "pipedream", "AdamW"),
    (
        "digits_cnn",
        [[2, 1], 1],
        4,
        "pipedream",
        "SGD",
    ),  # windows that are no multiple of the shares
    ("resnet", [1, 2, 1], 1, "pipedream", "AdamW"),  # windows without a micro-batch of a replica
    ("resnet", [2, 1, 1], 3, "pipedream-2bw", "AdamW"),
    ("digits_cnn", [1, [1, 2]], 3, "pipedream-2bw", "SGD"),
    ("mlp", [1, 1, 1, 1], 1, "pipedream-2bw", "SGD"),
]


@pytest.mark.parametrize(("task", "replicas", "window", "name", "optimizer"), CASES)
def test_training_equals_the_staleness_simulator(
    rank_pool: RankPool,
    make_package: MakePackage,
    task: str,
    replicas: list[Any],
    window: int,
    name: str,
    optimizer: str,
) -> None:
    package = make_package(task, replicas, window, name)
    settings = {"dtype": "float64", "optimizer": optimizer} | OPTIMIZERS[optimizer][0]
    results = rank_pool.run(
        "steps_without_flush",
        package.num_ranks,
        num_steps=NUM_STEPS,
        settings=settings,
        **package.arguments,
    )
    expected = stale_training(package, name, window, optimizer, stages_of(package, results))
    assert difference(results, expected) <= 1e-12
    pipeline = without_flush(name, package.plan.pipeline(NUM_STEPS * window), window)
    allowed = versions_allowed(name, pipeline, units_allowed(pipeline))
    for rank, (_, _, most) in enumerate(results):
        assert most <= max(limits.get(rank, 0) for limits in allowed)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("mlp", "pipedream"),
        ("mlp", "pipedream-2bw"),
        pytest.param("minkowski/unet", "pipedream", marks=needs_engine),
    ],
)
def test_a_runtime_that_keeps_no_versions_fails_the_comparison(
    rank_pool: RankPool, make_package: MakePackage, task: str, name: str
) -> None:
    package = make_package(task, [1, 1, 1], 1, name)
    settings = {"dtype": "float64", "learning_rate": 0.05}
    results = rank_pool.run(
        "steps_without_flush",
        3,
        num_steps=NUM_STEPS,
        keeps_versions=False,
        settings=settings,
        **package.arguments,
    )
    expected = stale_training(package, name, 1, "SGD", stages_of(package, results))
    assert difference(results, expected) > 1e-4


def test_2bw_trains_alike_on_any_plan_with_dropout(
    rank_pool: RankPool, make_package: MakePackage
) -> None:
    """All stages use one version for a micro-batch, so losses do not depend on the cuts."""
    found = []
    for replicas in ([1], [2, 1], [1, 1, 2]):
        package = make_package("mlp.py:build_with_dropout", replicas, 4, "pipedream-2bw")
        results = rank_pool.run(
            "steps_without_flush",
            package.num_ranks,
            num_steps=NUM_STEPS,
            settings={"dtype": "float64"},
            **package.arguments,
        )
        found.append([sum(x for r in results for x in r[0][s].values()) for s in range(NUM_STEPS)])
    assert found[1] == pytest.approx(found[0], rel=1e-12)
    assert found[2] == pytest.approx(found[0], rel=1e-12)


def test_a_resumed_training_goes_on_bitwise_as_if_it_had_not_stopped(
    rank_pool: RankPool, make_package: MakePackage, tmp_path: Path
) -> None:
    package = make_package("mlp.py:build_with_dropout", [1, 1], 2, "pipedream")
    options = {
        "epochs": 1,
        "max_steps": 7,
        "checkpoint_folder": tmp_path / "whole",
        "checkpoint_every": 3,
        "keep": 5,
        "evaluate": False,
    }
    settings = {"optimizer": "adamw", "clip_norm": 1.0, "rate_schedule": "cosine"}
    arguments = {"settings": settings, **package.arguments}
    whole = rank_pool.run("training", 2, options=options, **arguments)[0]
    assert whole.losses[-1] < whole.losses[0]
    shutil.copytree(tmp_path / "whole" / "step-00000003", tmp_path / "rest" / "step-00000003")
    options |= {"checkpoint_folder": tmp_path / "rest", "resume": True}
    rest = rank_pool.run("training", 2, options=options, **arguments)[0]
    assert rest.first_step == 3
    assert rest.losses == whole.losses[3:]


@pytest.mark.parametrize("schedule", ["1f1b", "pipedream"])
def test_an_update_sums_over_the_window_that_is_asked_for(
    rank_pool: RankPool, make_package: MakePackage, schedule: str
) -> None:
    """The plan's two micro-batches or the four of another plan: with a window of four they train alike."""
    found = []
    for num_microbatches, window in ((2, 4), (4, None)):
        package = make_package("mlp.py:build_with_dropout", [1, 1], num_microbatches, schedule)
        options = {"epochs": 1, "max_steps": 3, "evaluate": False}
        settings = {"update_window": window}
        run = rank_pool.run("training", 2, options=options, settings=settings, **package.arguments)
        found.append(run[0].losses)
    assert found[0] == found[1]


def test_stages_that_share_a_parameter_are_refused(make_package: MakePackage) -> None:
    plan = make_package("gpt", [2, 1], 2, "pipedream").plan
    refuse_shared_parameters("pipedream", plan, {"embedding.weight": (0, 1), "norm.bias": (2,)})
    with pytest.raises(InputError, match=r"stages 0, 1 share the parameter 'embedding.weight'"):
        refuse_shared_parameters("pipedream", plan, {"embedding.weight": (0, 1, 2)})


def test_digits_are_learnt_as_well_as_with_flush(
    rank_pool: RankPool, make_package: MakePackage
) -> None:
    package = make_package("mlp.py:build_with_dropout", [1, 1], 4, "1f1b")
    found = {}
    for schedule in ("1f1b", "pipedream", "pipedream-2bw"):
        settings = {"schedule": schedule, "learning_rate": 0.05}
        options = {"epochs": 3}
        history = rank_pool.run(
            "training", 2, options=options, settings=settings, **package.arguments
        )[0]
        found[schedule] = history.epochs[-1].test_metric
    assert min(found.values()) > 0.88
    assert max(found.values()) - min(found.values()) < 0.05
