"""Schedules with flush x replica mixes x micro-batches x models against one process.

A handful here; `make exactness` takes STAGEWRIGHT_EXACTNESS cases of each kind, and prints the worst found.
"""

import math
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from stagewright.scheduling import SCHEDULES

from .one_process import one_process, relative_difference, replica_mixes, total_of

RankPool = Any
MakePackage = Any
Weights = dict[str, Any]
"""Arrays in float64 by name."""

NUM_CASES = int(os.environ.get("STAGEWRIGHT_EXACTNESS", "4"))
MOST_RANKS = 6
WITH_DROPOUT = "gpt"
MODELS = ("digits_cnn", "resnet", "gpt.py:build_without_dropout", WITH_DROPOUT)
"""With skips, tied weights, borders of several tensors, dropout."""
MIXES = [mix for num_ranks in range(1, MOST_RANKS + 1) for mix in replica_mixes(num_ranks)]


@dataclass(frozen=True)
class Case:
    """One plan and schedule."""

    task: str
    schedule: str
    replicas: tuple[Any, ...]
    """Of each stage: a number or, with unequal ones, their shares."""
    num_ranks: int | None
    """Fewer than replicas: they are dealt to the ranks in turn."""
    num_microbatches: int

    def __str__(self) -> str:
        on = "" if self.num_ranks is None else f" on {self.num_ranks}"
        return f"{self.task} {self.schedule} {list(self.replicas)}{on} M{self.num_microbatches}"


def cases(number: int, seed: int, models: tuple[str, ...]) -> list[Case]:
    """Return a sample in which schedules and models come in turn, and the rest is drawn."""
    rng = random.Random(seed)
    found = []
    for index in range(number):
        schedule = SCHEDULES[index % len(SCHEDULES)]
        mix: list[Any] = list(rng.choice(MIXES))
        num_ranks = None
        if schedule == "interleaved" or rng.random() < 0.15:
            num_ranks = rng.randint(max(mix), MOST_RANKS)
            while sum(mix) <= num_ranks:
                mix.append(rng.randint(1, num_ranks))
        if rng.random() < 0.3:
            mix = [[rng.randint(1, 3) for _ in range(count)] for count in mix]
        task = models[(index + index // len(SCHEDULES)) % len(models)]
        found.append(Case(task, schedule, tuple(mix), num_ranks, rng.randint(1, 12)))
    return found


@pytest.fixture(scope="module")
def worst() -> Iterator[dict[str, float]]:
    """Return the worst differences by what was compared; they are printed at the end."""
    found: dict[str, float] = {}
    yield found
    for what, difference in found.items():
        print(f"worst {what}: {difference:.2e}")


def record(worst: dict[str, float], what: str, difference: float) -> None:
    worst[what] = max(worst.get(what, 0.0), difference)


def gradients_of_one_process(
    rank_pool: RankPool, make_package: MakePackage, package: Any, *, has_dropout: bool
) -> tuple[float, Mapping[str, Any]]:
    """Return loss and gradients; with dropout those of one rank that runs the whole model in one stage."""
    count, size = package.plan.num_microbatches, package.microbatch_size
    if has_dropout:
        one = make_package(WITH_DROPOUT, [1], count, "gpipe")
        settings = {"dtype": "float64"}
        ((loss, named),) = rank_pool.run("gradients", 1, settings=settings, **one.arguments)
        return sum(loss.values()), named
    losses, model = one_process(package.task, size, count, torch.float64)
    return losses[0], {
        name: None if p.grad is None else p.grad.numpy()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


@pytest.mark.parametrize("case", cases(NUM_CASES, 0, MODELS), ids=str)
def test_float64_gradients_equal_one_process(
    rank_pool: RankPool, make_package: MakePackage, worst: dict[str, float], case: Case
) -> None:
    package = make_package(
        case.task,
        case.replicas,
        case.num_microbatches,
        case.schedule,
        num_ranks=case.num_ranks,
    )
    settings = {"dtype": "float64"}
    results = rank_pool.run("gradients", package.num_ranks, settings=settings, **package.arguments)
    has_dropout = case.task == WITH_DROPOUT
    loss, expected = gradients_of_one_process(
        rank_pool, make_package, package, has_dropout=has_dropout
    )
    found: dict[str, Any] = {}
    for _, named in results:
        for name, gradient in named.items():
            if name in found:
                np.testing.assert_array_equal(gradient, found[name])
            found[name] = gradient
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        difference = relative_difference(found[name], gradient)
        record(worst, "gradient, relative to the tensor's largest", difference)
        assert difference <= 1e-12, name
    assert total_of([losses for losses, _ in results]) == pytest.approx(loss, rel=1e-12)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-6), ("float64", 1e-12)])
@pytest.mark.parametrize("case", cases(max(2, NUM_CASES // 4), 1, MODELS[:3]), ids=str)
def test_weights_after_three_adamw_steps_equal_one_process(
    rank_pool: RankPool,
    make_package: MakePackage,
    worst: dict[str, float],
    case: Case,
    dtype: str,
    most: float,
) -> None:
    """By the norm of all weights together; in float32 never by more than one process does from itself.

    AdamW divides a gradient by its own size. Where the gradient is nothing but rounding (a key's bias, a
    weight behind a dead unit), the update is of the size of the learning rate whatever it is. So the same
    process that only sums its micro-batches in another order differs from itself, too.
    """
    package = make_package(
        case.task,
        case.replicas,
        case.num_microbatches,
        case.schedule,
        num_ranks=case.num_ranks,
    )
    settings = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01, "dtype": dtype}
    results = rank_pool.run(
        "steps", package.num_ranks, num_steps=3, settings=settings, **package.arguments
    )
    count, size = case.num_microbatches, package.microbatch_size
    run = (package.task, size, count)
    expected = weights(one_process(*run, getattr(torch, dtype), 4, adamw)[1])
    found: Weights = {}
    for name, own in expected.items():
        copies = [state[name].astype(np.float64) for _, state in results if name in state]
        assert copies, name
        found[name] = max(copies, key=lambda copy: float(np.abs(copy - own).max()))
    relative = record_change(worst, f"AdamW in {dtype}", found, expected)
    if dtype == "float32":
        backwards = weights(one_process(*run, torch.float32, 4, adamw, backwards=True)[1])
        itself = record_change(worst, "one process, summing backwards", backwards, expected)
        rounding = weights(one_process(*run, torch.float64, 4, adamw)[1])
        record_change(worst, "one process, in float64", rounding, expected)
        most = max(most, itself)
    assert relative <= most


def weights(model: torch.nn.Module) -> Weights:
    return {name: p.detach().double().numpy() for name, p in model.named_parameters()}


def record_change(worst: dict[str, float], what: str, found: Weights, expected: Weights) -> float:
    """Record by how much weights differ; return the norm of the difference over the norm."""
    pairs = [(found[name] - own, own) for name, own in expected.items()]
    single = max(float(np.abs(difference).max()) for difference, _ in pairs)
    squares = [(float((d**2).sum()), float((own**2).sum())) for d, own in pairs]
    relative = math.sqrt(sum(d for d, _ in squares) / sum(own for _, own in squares))
    record(worst, f"weights after AdamW: {what}: single, absolute", single)
    record(worst, f"weights after AdamW: {what}: norm of the difference, relative", relative)
    return relative
