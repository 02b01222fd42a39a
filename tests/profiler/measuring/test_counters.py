"""Counted work: against the products that layers are known to make."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from stagewright.profiler.measuring.counters import FLOPS, OPERATORS, WorkMeter


def work_of(module: nn.Module, *inputs: Tensor) -> tuple[list[int], list[int]]:
    """Return flops and operators of a forward and of a backward."""
    with WorkMeter() as meter:
        start = meter.now()
        output = module(*inputs)
        middle = meter.now()
        (output[0] if isinstance(output, tuple) else output).sum().backward()
        end = meter.now()
    return meter.between(start, middle).tolist(), meter.between(middle, end).tolist()


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(x, x, x)


def test_products_count_two_for_each_multiplication() -> None:
    forward, backward = work_of(nn.Linear(8, 16), torch.ones(4, 8, requires_grad=True))
    assert forward[FLOPS] == 2 * 4 * 8 * 16
    assert backward[FLOPS] == 2 * forward[FLOPS]
    forward, backward = work_of(nn.Conv2d(3, 5, 3), torch.ones(2, 3, 10, 10))
    assert forward[FLOPS] == 2 * (2 * 8 * 8) * (3 * 3 * 3) * 5
    assert backward[FLOPS] == forward[FLOPS]


def test_attention_and_recurrent_layers_count_on_a_cpu_too() -> None:
    forward, backward = work_of(Attention(), torch.ones(2, 4, 64, 32, requires_grad=True))
    assert forward[FLOPS] == 2 * (2 * 2 * 4 * 64 * 64 * 32)
    assert backward[FLOPS] > forward[FLOPS]
    forward, backward = work_of(nn.LSTM(8, 16), torch.ones(5, 3, 8))
    assert forward[FLOPS] == 2 * 5 * 3 * (4 * 16) * (8 + 16)
    assert backward[FLOPS] == 2 * forward[FLOPS]


def test_every_operator_counts() -> None:
    class Three(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ((x + 1) * 2).relu()

    forward, _ = work_of(Three(), torch.ones(2, requires_grad=True))
    assert forward[OPERATORS] in (3, 4)  # Autograd may detach the result that it keeps.
