"""Traffic: what one rank has sent over its borders, counted as it is sent."""

from collections.abc import Iterable

import torch

from stagewright.program import Message

BorderTraffic = dict[tuple[int, int, bool], tuple[int, int]]
"""By source stage, target stage and whether it went forward: messages and bytes."""


class Traffic:
    """Counts until it is asked."""

    def __init__(self) -> None:
        self._counted: BorderTraffic = {}

    def count(self, message: Message, tensors: Iterable[torch.Tensor]) -> None:
        """Add one message between two ranks and its tensors."""
        key = (message.edge.source, message.edge.target, message.forward)
        messages, num_bytes = self._counted.get(key, (0, 0))
        for tensor in tensors:
            num_bytes += tensor.nbytes
        self._counted[key] = (messages + 1, num_bytes)

    def take(self) -> BorderTraffic:
        """Return what was sent since the last call."""
        counted, self._counted = self._counted, {}
        return counted
