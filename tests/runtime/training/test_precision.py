"""Mixed precision: the same as one process under torch.autocast and torch's own GradScaler."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stagewright.document import InputError
from stagewright.flushless import FLUSHLESS
from stagewright.plan import Plan
from stagewright.runtime.ranks.world import World
from stagewright.runtime.storage.checkpoint import load_checkpoint
from stagewright.runtime.storage.folders import newest_checkpoint
from stagewright.runtime.training.batches import DataOrder
from stagewright.runtime.training.precision import LossScale, autocast_dtype, make_loss_scaler
from stagewright.task import load_task

RankPool = Any
MakePackage = Any
GOLDEN = Path(__file__).parents[2] / "golden"
GPT = "gpt.py:build_without_dropout"
CLIP_NORM = 0.5


def one_process(
    package: Any, num_steps: int, dtype: torch.dtype
) -> tuple[list[float], dict[str, Any]]:
    """Train the original model as torch's documentation says: autocast, unscale, clip, step.

    Return the losses and the gradients of the first step.
    """
    plan, task = package.plan, load_task(package.task)
    torch.manual_seed(0)
    model = task.build()
    loss_of, dataset = task.function("loss"), task.function("dataset")("train")
    order = DataOrder(len(dataset), plan.microbatch_size, plan.num_microbatches, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    losses, first_gradients = [], {}
    for step in range(num_steps):
        total = 0.0
        for microbatch in range(plan.num_microbatches):
            items = [dataset[index] for index in order.indices(0, step, microbatch)]
            x, y = (torch.stack([torch.as_tensor(item[i]) for item in items]) for i in range(2))
            with torch.autocast("cpu", dtype):
                loss = loss_of(model(x), y) / plan.num_microbatches
            scaler.scale(loss).backward()
            total += loss.item()
        scaler.unscale_(optimizer)
        if step == 0:
            first_gradients = {n: p.grad.numpy().copy() for n, p in model.named_parameters()}
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(total)
    return losses, first_gradients


@pytest.mark.parametrize(
    ("task", "replicas", "schedule", "precision"),
    [
        (GPT, [1, 2], "1f1b", "bf16"),
        (GPT, [1, 1, 1], "gpipe", "fp16"),
        ("resnet", [1, 1], "zero-bubble", "bf16"),
        ("mlp", [2, 1], "1f1b", "fp16"),
    ],
)
def test_gradients_and_three_clipped_adamw_steps_equal_one_process_under_autocast(
    rank_pool: RankPool,
    make_package: MakePackage,
    task: str,
    replicas: list[int],
    schedule: str,
    precision: str,
) -> None:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    package = make_package(task, replicas, 3, schedule, str(dtype).removeprefix("torch."))
    settings = {"optimizer": "adamw", "clip_norm": CLIP_NORM, "precision": precision}
    common = {"settings": settings, **package.arguments}
    results = rank_pool.run("gradients", package.num_ranks, **common)
    losses, gradients = one_process(package, 3, dtype)
    found = {name: gradient for _, named in results for name, gradient in named.items()}
    assert set(found) == set(gradients)
    for name, gradient in gradients.items():
        assert found[name].dtype == np.float32
        largest = np.abs(gradient).max()
        assert np.abs(found[name] - gradient).max() <= 1e-5 * largest, name
    results = rank_pool.run("steps", package.num_ranks, num_steps=3, **common)
    trained = [sum(loss for own, _ in results for loss in own[step].values()) for step in range(3)]
    assert trained == pytest.approx(losses, rel=2**-8)


def test_the_borders_carry_the_dtypes_that_autocast_gives_their_values(
    make_package: MakePackage,
) -> None:
    full = make_package("mlp", [1, 1], 2, "1f1b").plan
    mixed = make_package("mlp", [1, 1], 2, "1f1b", "bfloat16").plan
    assert (full.autocast, mixed.autocast) == (None, "bfloat16")
    assert 2 * mixed.borders[0].forward_bytes(4) == full.borders[0].forward_bytes(4)


@pytest.mark.parametrize("precision", ["full", "bf16", "fp16"])
def test_a_plan_of_mixed_precision_also_runs_in_the_others(
    rank_pool: RankPool, make_package: MakePackage, precision: str
) -> None:
    package = make_package("mlp", [1, 1], 2, "1f1b", "bfloat16")
    settings = {"precision": precision}
    results = rank_pool.run("gradients", 2, settings=settings, **package.arguments)
    found = {name: gradient for _, named in results for name, gradient in named.items()}
    full = make_package("mlp", [1], 2, "1f1b")
    ((_, expected),) = rank_pool.run("gradients", 1, settings={}, **full.arguments)
    tolerance = {"full": 1e-5, "bf16": 0.1, "fp16": 0.1}[precision]
    for name, gradient in expected.items():
        apart = np.linalg.norm(found[name] - gradient)
        assert apart <= tolerance * np.linalg.norm(gradient), name


def test_an_overflow_on_one_rank_skips_the_step_on_all(
    rank_pool: RankPool, make_package: MakePackage
) -> None:
    package = make_package("mlp", [2, 1], 3, "1f1b", "float16")
    results = rank_pool.run(
        "steps_with_an_overflow",
        3,
        num_steps=3,
        victim=1,
        bad_step=1,
        settings={"clip_norm": 1.0},
        **package.arguments,
    )
    for changed, scales in results:
        assert changed == [True, False, True]
        assert scales == [65536.0, 32768.0, 32768.0]


def test_the_scale_goes_into_checkpoints_and_comes_back(
    rank_pool: RankPool, make_package: MakePackage, tmp_path: Path
) -> None:
    package = make_package("mlp", [1, 1], 2, "1f1b", "float16")
    for max_steps in (2, 3):
        options = {
            "epochs": 1,
            "max_steps": max_steps,
            "evaluate": False,
            "checkpoint_folder": tmp_path,
            "resume": True,
        }
        rank_pool.run("training", 2, options=options, settings={}, **package.arguments)
        newest = newest_checkpoint(tmp_path)
        assert newest is not None
        assert load_checkpoint(newest).loss_scale == LossScale(scale=65536.0, good_steps=max_steps)


def test_the_scale_moves_as_in_torchs_grad_scaler() -> None:
    state = LossScale(scale=1024.0, good_steps=1998)
    state = state.after(is_finite=True)
    assert state == LossScale(scale=1024.0, good_steps=1999)
    assert state.after(is_finite=True) == LossScale(scale=2048.0, good_steps=0)
    assert state.after(is_finite=False) == LossScale(scale=512.0, good_steps=0)


def test_what_cannot_be_mixed_is_refused_in_one_line() -> None:
    plan = Plan.load(GOLDEN / "plan.v2.json")
    with pytest.raises(InputError, match=r"profile with --autocast bf16, then plan"):
        autocast_dtype(plan, "bf16", "float32")
    mixed = plan.replace(autocast="bfloat16")
    with pytest.raises(InputError, match=r"needs parameters in float32, not in float64"):
        autocast_dtype(mixed, "fp16", "float64")
    assert autocast_dtype(mixed, None, "float64") is None
    assert autocast_dtype(mixed, None, "float32") == "bfloat16"
    world = World(0, 1, torch.device("cpu"))
    for schedule in FLUSHLESS:
        with pytest.raises(InputError, match=r"has no flush: use bf16, or a schedule with flush"):
            make_loss_scaler("float16", schedule, world)
    assert make_loss_scaler("bfloat16", FLUSHLESS[0], world) is None
