"""Transport: one tensor from a rank to another, by what the backend can carry.

gloo carries host memory only, so tensors of a GPU are staged: copied to pinned host memory before they are
sent and back after they have arrived. NCCL knows no booleans and no complex numbers; types that a backend
may not know travel as bytes.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist

from stagewright.program import Channel
from stagewright.runtime.ranks.world import World

from .buffers import BufferPool

CARRIED = {
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.uint8, torch.int8, torch.int32, torch.int64,
}  # fmt: skip
"""Element types that gloo and NCCL both know."""


class Transport:
    """Sends and receives dense tensors of this rank's device."""

    def __init__(self, world: World) -> None:
        self._rank = world.rank
        self._groups = world.messages
        self._device = world.device
        self.is_staged = world.device.type == "cuda" and world.backend == "gloo"
        """Whether tensors pass through host memory."""
        home = torch.device("cpu") if self.is_staged else world.device
        self.pool = BufferPool(home, pinned=self.is_staged)
        """The buffers to receive into."""

    def connect(self, channels: Iterable[Channel]) -> None:
        """Send one element over each of some channels, those of all ranks in an order that all agree on.

        NCCL connects two ranks at the first message between them, and the one that comes first waits there
        for the other: with a receive that is posted early this could be for ever.
        """
        for sender, receiver, forward in channels:
            element = torch.zeros(1, device="cpu" if self.is_staged else self._device)
            if self._rank == sender:
                self._group(self._rank, receiver, forward).send([element], receiver, 0).wait()
            elif self._rank == receiver:
                self._group(sender, self._rank, forward).recv([element], sender, 0).wait()

    def send(
        self, tensor: torch.Tensor, receiver: int, forward: bool
    ) -> tuple[list[dist.Work], torch.Tensor]:
        """Start sending a tensor; return what is under way, and the memory to keep until it has arrived."""
        ready = tensor.detach().contiguous()
        if self.is_staged:
            staged = self.pool.take(tuple(ready.shape), ready.dtype)
            staged.copy_(ready, non_blocking=True)
            torch.cuda.current_stream(self._device).synchronize()
            ready = staged
        if not ready.numel():
            return [], ready
        return [
            self._group(self._rank, receiver, forward).send([_as_carried(ready)], receiver, 0)
        ], ready

    def _group(self, sender: int, receiver: int, forward: bool) -> dist.ProcessGroup:
        """Return a channel's group, which has all ranks under their own numbers.

        Its own methods take half as long as torch.distributed.isend and irecv, whose checks need not be
        repeated for every message.
        """
        return self._groups[forward, sender < receiver]

    def receive(self, buffer: torch.Tensor, sender: int, forward: bool) -> list[dist.Work]:
        """Start receiving into a buffer; return what is under way."""
        if not buffer.numel():
            return []
        return [self._group(sender, self._rank, forward).recv([_as_carried(buffer)], sender, 0)]

    def arrived(self, buffer: torch.Tensor) -> torch.Tensor:
        """Return the tensor that has arrived in a buffer, on this rank's device."""
        return buffer.to(self._device, non_blocking=True) if self.is_staged else buffer


def _as_carried(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same memory as a type that every backend knows."""
    if tensor.dtype in CARRIED:
        return tensor
    return tensor.reshape(-1).view(torch.uint8)
