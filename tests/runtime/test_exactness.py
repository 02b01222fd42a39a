"""Schedules with flush x replica mixes x micro-batches x models against one process.

A handful here; `make exactness` takes STAGEWRIGHT_EXACTNESS cases of each kind, and prints the worst found.
"""

import math
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from stagewright.graph import LayerGraph
from stagewright.scheduling import SCHEDULES

from .one_process import one_process, relative_difference, replica_mixes, total_of

RankPool = Any
MakePackage = Any
Weights = dict[str, Any]
"""Arrays in float64 by name."""

NUM_CASES = int(os.environ.get("STAGEWRIGHT_EXACTNESS", "4"))
NUM_TRAININGS = max(2, NUM_CASES // 4)
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

    def made_by(self, make_package: MakePackage) -> Any:
        return make_package(
            self.task, self.replicas, self.num_microbatches, self.schedule, num_ranks=self.num_ranks
        )

    def __str__(self) -> str:
        on = "" if self.num_ranks is None else f" on {self.num_ranks}"
        return f"{self.task} {self.schedule} {list(self.replicas)}{on} M{self.num_microbatches}"


def cases(
    number: int, seed: int, models: tuple[str, ...], most_replicas: int = MOST_RANKS
) -> list[Case]:
    """Return a sample in which schedules and models come in turn, and the rest is drawn."""
    rng = random.Random(seed)
    found, mixes = [], [mix for mix in MIXES if max(mix) <= most_replicas]
    for index in range(number):
        schedule = SCHEDULES[index % len(SCHEDULES)]
        mix: list[Any] = list(rng.choice(mixes))
        num_ranks = None
        if schedule == "interleaved" or rng.random() < 0.15:
            num_ranks = rng.randint(max(mix), MOST_RANKS)
            while sum(mix) <= num_ranks:
                mix.append(rng.randint(1, min(num_ranks, most_replicas)))
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
    package = case.made_by(make_package)
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


def adamw(parameters: Any, eps: float = 1e-8) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01, eps=eps)


def weights_after_three_steps(
    rank_pool: RankPool, package: Any, expected: Weights, dtype: str, eps: float = 1e-8
) -> Weights:
    """Return what the ranks have; of several copies of a weight, the one that is farthest off."""
    settings = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01, "dtype": dtype}
    settings["optimizer_options"] = (("eps", eps),)
    results = rank_pool.run(
        "steps", package.num_ranks, num_steps=3, settings=settings, **package.arguments
    )
    found: Weights = {}
    for name, own in expected.items():
        copies = [state[name].astype(np.float64) for _, state in results if name in state]
        assert copies, name
        found[name] = max(copies, key=lambda copy: float(np.abs(copy - own).max()))
    return found


@pytest.mark.parametrize(
    ("dtype", "eps", "most", "models"),
    [("float32", 1e-6, 1e-6, (MODELS[0], MODELS[2])), ("float64", 1e-8, 1e-12, MODELS[:3])],
)
@pytest.mark.parametrize("index", range(NUM_TRAININGS))
def test_weights_after_three_adamw_steps_equal_one_process(
    rank_pool: RankPool,
    make_package: MakePackage,
    worst: dict[str, float],
    index: int,
    dtype: str,
    eps: float,
    most: float,
    models: tuple[str, ...],
) -> None:
    """By the norm of all weights. In float32 with eps 1e-6, without BatchNorm: why: docs/benchmarks.md."""
    case = cases(NUM_TRAININGS, 1, models)[index]
    package = case.made_by(make_package)
    run = (package.task, package.microbatch_size, case.num_microbatches, getattr(torch, dtype))
    expected = weights(one_process(*run, 4, partial(adamw, eps=eps))[1])
    found = weights_after_three_steps(rank_pool, package, expected, dtype, eps)
    assert record_change(worst, f"AdamW in {dtype}, eps {eps:g}", found, expected) <= most, case


@pytest.mark.parametrize("case", cases(NUM_TRAININGS, 2, MODELS[:2], most_replicas=2), ids=str)
def test_float32_weights_are_bitwise_those_of_one_process_that_adds_as_the_plan_does(
    rank_pool: RankPool, make_package: MakePackage, worst: dict[str, float], case: Case
) -> None:
    """Every replica adds up its own units, then come the sums of two, which have one order only."""
    package = case.made_by(make_package)
    graph = LayerGraph.load(package.directory.parent / "graph.json")
    layers = {layer.name: layer for layer in graph.layers}
    routes = package.plan.pipeline().routes
    route_of = {
        parameter.name: route
        for stage, route in zip(package.plan.stages, routes, strict=True)
        for name in stage.layers
        for parameter in layers[name].parameters
    }
    run = (package.task, package.microbatch_size, case.num_microbatches, torch.float32, 4, adamw)
    expected = weights(one_process(*run, lambda name, m: route_of[name][m])[1])
    found = weights_after_three_steps(rank_pool, package, expected, "float32")
    assert record_change(worst, "AdamW in float32, added as in the plan", found, expected) == 0


def weights(model: torch.nn.Module) -> Weights:
    return {name: p.detach().double().numpy() for name, p in model.named_parameters()}


def record_change(worst: dict[str, float], what: str, found: Weights, expected: Weights) -> float:
    """Record by how much weights differ; return the norm of the difference over the norm."""
    pairs = [(found[name] - own, own) for name, own in expected.items()]
    single = max(float(np.abs(difference).max()) for difference, _ in pairs)
    squares = [(float((d**2).sum()), float((own**2).sum())) for d, own in pairs]
    relative = math.sqrt(sum(d for d, _ in squares) / sum(own for _, own in squares))
    record(worst, f"weights after {what}: single, absolute", single)
    record(worst, f"weights after {what}: norm of the difference, relative", relative)
    return relative
