"""The update: clipping, learning rates and any optimizer, against one process with torch's own."""

from typing import Any

import numpy as np
import pytest
import torch

from stagewright.document import InputError
from stagewright.runtime.training.batches import DataOrder
from stagewright.runtime.training.updating import make_optimizer, rate_at
from stagewright.task import load_task

RankPool = Any
MakePackage = Any
NUM_STEPS = 6


def one_process(package: Any, name: str, clip_norm: float | None, **options: Any) -> dict[str, Any]:
    """Return the state dict after some steps of a plain loop."""
    task = load_task(package.task)
    torch.manual_seed(0)
    model = task.build().double()
    dataset = task.function("dataset")("train")
    order = DataOrder(len(dataset), package.microbatch_size, package.plan.num_microbatches, seed=0)
    optimizer = getattr(torch.optim, name)(model.parameters(), **options)
    for step in range(NUM_STEPS):
        for microbatch in range(package.plan.num_microbatches):
            items = [dataset[index] for index in order.indices(0, step, microbatch)]
            x, y = (torch.stack([torch.as_tensor(item[i]) for item in items]) for i in range(2))
            loss = task.function("loss")(model(x.double() if x.is_floating_point() else x), y)
            (loss / package.plan.num_microbatches).backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        optimizer.zero_grad()
    return {key: value.numpy() for key, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "clip_norm", "options"),
    [
        ("SGD", 0.05, {"lr": 0.1, "momentum": 0.9}),
        ("AdamW", None, {"lr": 0.01, "betas": (0.8, 0.95)}),
        ("RMSprop", 0.2, {"lr": 0.001, "alpha": 0.9}),
    ],
)
def test_weights_after_clipped_steps_equal_one_process(
    rank_pool: RankPool,
    make_package: MakePackage,
    name: str,
    clip_norm: float | None,
    options: dict[str, Any],
) -> None:
    package = make_package("gpt.py:build_without_dropout", [2, 1], 3, "1f1b")
    further = {key: value for key, value in options.items() if key not in ("lr", "momentum")}
    settings = {
        "dtype": "float64",
        "optimizer": name,
        "learning_rate": options["lr"],
        "optimizer_options": tuple(further.items()),
        "clip_norm": clip_norm,
    }
    if name == "AdamW":
        options = options | {"weight_decay": 0.0}
    results = rank_pool.run("steps", 3, num_steps=NUM_STEPS, settings=settings, **package.arguments)
    expected = one_process(package, name, clip_norm, **options)
    for _, state in results:
        for key, value in state.items():
            np.testing.assert_allclose(value, expected[key], rtol=1e-7, atol=1e-10)


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    assert [rate_at("constant", step, 10, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [rate_at("linear", step, 4, 0) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert rate_at("cosine", 5, 10, 0) == pytest.approx(0.5)
    assert rate_at("cosine", 10, 10, 0) == pytest.approx(0.0)


@pytest.mark.parametrize("name", ["nonesuch", "LBFGS", "Optimizer", "lr_scheduler"])
def test_what_is_no_usable_optimizer_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"--optimizer is '{name}'"):
        make_optimizer(name, [torch.nn.Parameter(torch.zeros(1))], {"lr": 0.1})


def test_an_option_that_the_optimizer_does_not_take_is_refused() -> None:
    with pytest.raises(InputError, match=r"--optimizer adam: .*unexpected keyword"):
        make_optimizer("adam", [torch.nn.Parameter(torch.zeros(1))], {"lr": 0.1, "speed": 3})
