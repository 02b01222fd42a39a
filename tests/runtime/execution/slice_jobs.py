"""What ranks do in the tests of slices: a causal attention net cut into stages that keep keys and values."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stagewright.plan import Border, NamedValue
from stagewright.runtime.execution.executor import Batches, Executor
from stagewright.runtime.execution.randomness import LayerSeeds
from stagewright.runtime.execution.rank_program import rank_program
from stagewright.runtime.execution.recompute import RecomputingRunner
from stagewright.runtime.execution.replicas import Reduction
from stagewright.runtime.execution.stage import StageRunner
from stagewright.runtime.messages.exchange import Exchange
from stagewright.runtime.messages.slicing import Slicing
from stagewright.runtime.messages.values import Precision
from stagewright.runtime.ranks.world import World
from stagewright.schedule import Edge, Pipeline, Unit, Worker
from stagewright.scheduling import make_schedule
from stagewright.value import PerSample, TensorSpec

WIDTH, NUM_SAMPLES = 8, 2
PRECISION = Precision("float64", "float64")
CPU = torch.device("cpu")


class Layer(nn.Module):
    """Causal attention, then what every position does by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, with_earlier: Callable[[str, Tensor, int], Tensor]) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).chunk(3, -1)
        key, value = with_earlier("key", key, 1), with_earlier("value", value, 1)
        scores = query @ key.transpose(1, 2) / math.sqrt(WIDTH)
        before = key.size(1) - query.size(1)
        seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril(before)
        mixed = scores.masked_fill(~seen, -math.inf).softmax(-1) @ value
        result: Tensor = x + self.out(torch.tanh(mixed))
        return result


class AttentionStage(nn.Module):
    """One layer; it names the values that cross its borders as a generated stage does."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.inputs = ("x",) if index == 0 else (f"layer{index - 1}",)
        self.outputs = (f"layer{index}",)
        self.layers = nn.ModuleDict({f"layer{index}": Layer()})

    @staticmethod
    def with_earlier(name: str, value: Tensor, dim: int) -> Tensor:
        """Without slices nothing is earlier."""
        return value

    def forward(self, x: Tensor) -> tuple[Tensor, ...] | Tensor:
        (layer,) = self.layers.values()
        return (layer(x, self.with_earlier),)


def attention_stages(num_stages: int) -> list[AttentionStage]:
    torch.manual_seed(5)
    return [AttentionStage(index).double() for index in range(num_stages)]


def attention_borders(num_stages: int, num_tokens: int) -> tuple[Border, ...]:
    spec = TensorSpec(
        shape=(PerSample(per_sample=1), num_tokens, WIDTH), dtype="float64", requires_grad=True
    )
    return tuple(
        Border(
            source=index,
            target=index + 1,
            values=(NamedValue(layer=f"layer{index}", spec=spec),),
        )
        for index in range(num_stages - 1)
    )


class Tokens(Batches):
    """Random micro-batches."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens

    def size_of(self, microbatch: int) -> int:
        return NUM_SAMPLES

    def inputs_of(self, microbatch: int, layers: Sequence[str]) -> dict[str, Any]:
        return {"x": self._random(microbatch)} if "x" in layers else {}

    def target_of(self, microbatch: int) -> Tensor:
        return self._random(1000 + microbatch)

    def _random(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (NUM_SAMPLES, self._num_tokens, WIDTH)
        return torch.randn(shape, generator=generator, dtype=torch.float64)


def squared_error(output: Any, *, target: Tensor, unit: Unit) -> Tensor:
    """Return the loss of a unit: a sum over its positions."""
    loss: Tensor = ((output[0] - target) ** 2).sum()
    return loss


def sliced_step(
    world: World,
    schedule: str,
    stages: Sequence[Sequence[Worker]],
    num_microbatches: int,
    lengths: tuple[int, ...],
    recomputing: Sequence[int] = (),
) -> tuple[float, dict[str, Any], list[str], int]:
    """Run a step; return this rank's loss and gradients, its actions, and what its stages still hold."""
    slicing, num_stages = Slicing(lengths), len(stages)
    edges = tuple(Edge(index, index + 1) for index in range(num_stages - 1))
    workers = tuple(map(tuple, stages))
    pipeline = Pipeline(workers, edges, num_microbatches, num_slices=len(lengths))
    borders = attention_borders(num_stages, sum(lengths))
    modules = {
        index: module
        for index, module in enumerate(attention_stages(num_stages))
        if any(worker.rank == world.rank for worker in stages[index])
    }
    runners = {
        index: (RecomputingRunner if index in recomputing else StageRunner)(
            index, module, borders, PRECISION, CPU, slicing
        )
        for index, module in modules.items()
    }
    exchange = Exchange(borders, PRECISION, world, slicing)
    executor = Executor(runners, exchange, LayerSeeds(0), CPU, slicing=slicing)
    reduction = Reduction(modules, (), world)
    program = rank_program(pipeline, make_schedule(schedule, pipeline), world.rank)
    losses: list[float] = []

    def finish(output: Any, *, target: Any, unit: Unit) -> Tensor:
        loss = squared_error(output, target=target, unit=unit)
        losses.append(loss.item())
        return loss

    measured = executor.run(program, Tokens(sum(lengths)), 0, finish)
    reduction.sum_gradients()
    found = {name: p.grad.numpy() for name, p in reduction.parameters.items() if p.grad is not None}
    held = sum(runner.units_held + runner.earlier.num_held for runner in runners.values())
    return sum(losses), found, [str(m.action) for m in measured], held
