"""Exchange: the messages of a plan's borders between ranks, over gloo or NCCL.

Values and gradients travel in two process groups, so each ordered pair of ranks has one first-in-first-out
channel per direction of the pipeline, whose order both ends read from the same programs. Both ends know every
shape from the plan, so messages carry no header; the sender compares each tensor with the plan.
"""

from collections import deque
from collections.abc import Iterable

import torch
import torch.distributed as dist

from stagewright.plan import Border
from stagewright.program import Message
from stagewright.runtime.faults import waiting_for
from stagewright.schedule import Edge
from stagewright.value import TensorSpec, tensors_of

from .values import Precision, ValueMismatchError, check_tensor, empty_like_spec

MAX_PENDING_SENDS = 16
"""Messages that may wait for their receiver before the sender waits too; bounds memory in evaluation."""


class Exchange:
    """One rank's end of all channels."""

    def __init__(
        self,
        borders: Iterable[Border],
        precision: Precision,
        device: torch.device,
        values_group: dist.ProcessGroup | None,
        gradients_group: dist.ProcessGroup | None,
    ) -> None:
        """The groups hold all ranks; None where there is one rank only, which sends nothing."""
        self._specs = {
            (border.source, border.target): [t for v in border.values for t in tensors_of(v.spec)]
            for border in borders
        }
        self._precision = precision
        self._device = device
        self._groups = {True: values_group, False: gradients_group}
        self._sends: deque[tuple[Message, list[dist.Work], list[torch.Tensor]]] = deque()
        self._receives: dict[Message, tuple[list[torch.Tensor], list[dist.Work]]] = {}

    def specs_of(self, edge: Edge, *, forward: bool) -> list[TensorSpec]:
        """Return the tensors of a border's messages: all forward, those with a gradient backward."""
        specs = self._specs[edge.source, edge.target]
        return specs if forward else [spec for spec in specs if spec.requires_grad]

    def send(self, message: Message, tensors: list[torch.Tensor], batch_size: int) -> None:
        """Start sending a message's tensors.

        Raises:
            ValueMismatchError: a tensor is not what the plan says.
            PeerLostError: the receiver is gone.
        """
        specs = self.specs_of(message.edge, forward=message.forward)
        assert len(specs) == len(tensors)
        ready = []
        for position, (tensor, spec) in enumerate(zip(tensors, specs, strict=True)):
            try:
                check_tensor(tensor, spec, batch_size, self._precision)
            except ValueMismatchError as error:
                raise ValueMismatchError(f"{message}: tensor {position} {error}") from None
            ready.append(tensor.detach().contiguous())
        group = self._groups[message.forward]
        with waiting_for(f"the sending of {message}"):
            works = [dist.isend(tensor, message.receiver, group=group) for tensor in ready]
        self._sends.append((message, [work for work in works if work is not None], ready))
        while len(self._sends) > MAX_PENDING_SENDS:
            self._finish_oldest_send()

    def post(self, message: Message, batch_size: int) -> None:
        """Be ready to receive a message."""
        group = self._groups[message.forward]
        buffers = [
            empty_like_spec(spec, batch_size, self._precision, self._device)
            for spec in self.specs_of(message.edge, forward=message.forward)
        ]
        with waiting_for(str(message)):
            works = [dist.irecv(buffer, message.sender, group=group) for buffer in buffers]
        self._receives[message] = (buffers, [work for work in works if work is not None])

    def receive(self, message: Message) -> list[torch.Tensor]:
        """Wait for a posted message and return its tensors.

        Raises:
            PeerLostError: the sender is gone or did not send in time.
        """
        buffers, works = self._receives.pop(message)
        with waiting_for(str(message)):
            for work in works:
                work.wait()
        return buffers

    def drain(self) -> None:
        """Wait until all that was sent has arrived."""
        while self._sends:
            self._finish_oldest_send()
        assert not self._receives, "a posted message was never used"

    def _finish_oldest_send(self) -> None:
        message, works, _ = self._sends.popleft()
        with waiting_for(f"the arrival of {message}"):
            for work in works:
                work.wait()
