"""How far float32 rounding goes in 20 steps of the small sparse VGG, in one process, without any pipeline.

Run with: .venv/bin/python benchmarks/sparse_rounding.py (needs `make minkowski`). A plain loop over four
micro-batches a step (SGD with momentum, as in `tests/runtime/test_sparse_models.py`) is run again with the
gradients of the micro-batches added as three replicas add them, in reverse, with one weight changed by one
unit in the last place, and in float64. Printed is by how much any loss of the 20 steps differs from the plain
float32 run's, relative, for several data orders and sizes of micro-batches; all measured.
"""

import argparse
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from stagewright.runtime.training.batches import DataOrder
from stagewright.task import load_task

NUM_STEPS, NUM_MICROBATCHES = 20, 4
TASK = load_task("stagewright.models.minkowski.vgg:small")
VARIANTS = ("as three replicas", "in reverse", "one weight + 1 ulp", "float64", "float64, replicas")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--orders", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'samples':>7} {'order':>5}  " + "  ".join(f"{name:>18}" for name in VARIANTS))
    for size in args.sizes:
        for seed in range(args.orders):
            plain = losses(size, seed, "plain")
            exact = losses(size, seed, "plain", torch.float64)
            found = [
                farthest(losses(size, seed, name), plain) for name in ("replicas", "reverse", "ulp")
            ]
            found.append(farthest(exact, plain))
            found.append(farthest(losses(size, seed, "replicas", torch.float64), exact))
            print(f"{size:>7} {seed:>5}  " + "  ".join(f"{f:>18.0e}" for f in found), flush=True)


def farthest(found: Sequence[float], expected: Sequence[float]) -> float:
    """Return the largest relative difference of two runs' losses."""
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


def losses(size: int, seed: int, variant: str, dtype: torch.dtype = torch.float32) -> list[float]:
    """Return the losses of 20 steps."""
    torch.manual_seed(seed)
    model = TASK.build().to(dtype)
    parameters = list(model.parameters())
    if variant == "ulp":
        with torch.no_grad():
            first = parameters[0].view(-1)[:1]
            first.copy_(torch.nextafter(first, torch.full_like(first, 9.0)))
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    order = DataOrder(len(samples()), size, NUM_MICROBATCHES, seed=seed)
    found = []
    for step in range(NUM_STEPS):
        total, gradients = 0.0, []
        for microbatch in range(NUM_MICROBATCHES):
            items = [sample(index) for index in order.indices(0, step, microbatch)]
            points = torch.stack([cloud for cloud, _ in items]).to(dtype)
            torch.manual_seed(1000 * step + microbatch)  # the same dropout in every variant
            loss = TASK.call("loss", model(points), torch.tensor([label for _, label in items]))
            gradients.append(torch.autograd.grad(loss / NUM_MICROBATCHES, parameters))
            total += loss.item() / NUM_MICROBATCHES
        for parameter, gradient in zip(parameters, added(gradients, variant), strict=True):
            parameter.grad = gradient
        optimizer.step()
        found.append(total)
    return found


def added(gradients: list[tuple[Tensor, ...]], variant: str) -> list[Tensor]:
    """Return the sum over the micro-batches, in the variant's order."""
    if variant == "reverse":
        gradients = gradients[::-1]
    if (
        variant == "replicas"
    ):  # Micro-batches 0 and 3 are the first one's; then the replicas are summed.
        gradients = [total([gradients[0], gradients[3]]), gradients[1], gradients[2]]
    return list(total(gradients))


def total(gradients: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Return the sums of some gradients, added one after the other."""
    return tuple(sum(own[1:], own[0]) for own in zip(*gradients, strict=True))


@cache
def samples() -> Any:
    return TASK.call("dataset", "train")


@cache
def sample(index: int) -> tuple[Tensor, int]:
    cloud, label = samples()[index]
    return cloud, label


if __name__ == "__main__":
    main()
