"""What is counted in a step, not timed: floating-point operations, launched operators, memory in between."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

FLOPS, OPERATORS = 0, 1
"""Places in what `WorkMeter` counts."""
aten = torch.ops.aten


def _recurrent_flops(inputs: Any, *weights: Any, **_: Any) -> int:
    """Return the flops of a recurrent layer: each weight matrix times the vector of each step and sample.

    Args:
        inputs: shape of (time, batch, width).
        weights: the call's other arguments: first a list of all weights' shapes (cuDNN), or one by one those
            of the two matrices (oneDNN).
    """
    matrices = weights[0] if isinstance(weights[0], list) else weights[:2]
    sizes = (rows * columns for shape in matrices if len(shape) == 2 for rows, columns in [shape])
    return int(2 * inputs[0] * inputs[1] * sum(sizes))


def _recurrent_backward_flops(*arguments: Any, **keywords: Any) -> int:
    return 2 * _recurrent_flops(*arguments, **keywords)


OWN_FORMULAS: Mapping[Any, Any] = {
    aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}
"""Of operators that torch's counter (torch.utils.flop_counter) leaves out; they take tensors."""
RECURRENT_FORMULAS: Mapping[Any, Any] = {
    aten.mkldnn_rnn_layer: _recurrent_flops,
    aten.mkldnn_rnn_layer_backward: _recurrent_backward_flops,
    aten._cudnn_rnn: _recurrent_flops,
    aten._cudnn_rnn_backward: _recurrent_backward_flops,
}
"""The same; they take shapes."""


class WorkMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts floating-point operations and operators while it is entered.

    Matrix products, convolutions, attention and recurrent layers count, by the formulas of
    torch.utils.flop_counter (a multiplication and an addition are two; attention counts as if it had no
    causal mask); operators by element count 0, as there.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counted = np.zeros(2, dtype=np.int64)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = kwargs or {}
        value = func(*args, **keywords)
        self._counted[OPERATORS] += 1
        packet = func._overloadpacket
        formula = flop_registry.get(packet) or OWN_FORMULAS.get(packet)
        if formula is not None:
            self._counted[FLOPS] += formula(*args, **keywords, out_val=value)
        elif packet in RECURRENT_FORMULAS:
            self._counted[FLOPS] += RECURRENT_FORMULAS[packet](*tree_map(_shape, args))
        return value

    def now(self) -> NDArray[np.int64]:
        return self._counted.copy()

    def settle(self) -> None:
        """Nothing to wait for: the counts are the host's."""

    def between(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of FLOPS and of OPERATORS."""
        return second - first


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else value


class WorkspaceMeter:
    """The memory of a GPU that is used between two moments and free again at the second, in bytes.

    Its moments follow one another: reading one starts the peak anew.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> tuple[int, int]:
        """Return the peak since the last reading, and what is allocated now."""
        peak = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak, torch.cuda.memory_allocated(self.device)

    def settle(self) -> None:
        """Nothing to wait for: the allocator's figures are the host's."""

    def between(self, first: tuple[int, int], second: tuple[int, int]) -> int:
        """Return the peak between them above what is allocated at the ends."""
        return max(0, second[0] - max(first[1], second[1]))
