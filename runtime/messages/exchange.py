"""Exchange: the messages of a plan's borders between ranks, over gloo or NCCL.

Values and gradients travel in two process groups, so each ordered pair of ranks has one first-in-first-out
channel per direction of the pipeline, whose order both ends read from the same programs. Three kinds of
message differ in how their receiver learns of the tensors:

- static: every shape follows from the plan and the number of samples, so there is no header. Every message
  is compared with the plan at the sender; the first of a channel is announced and compared at the receiver;
- ragged: something depends on the data; every message is announced (announcements.py);
- gradients: as the tensors that were sent forward; never announced.

Receives of a channel are handed to the backend in the order of its messages, each as soon as its layout is
known: in `post` where it is static, else in `advance` or, at the latest, in `receive`.
"""

import datetime
from collections import defaultdict, deque
from collections.abc import Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass

import torch
import torch.distributed as dist

from stagewright.plan import Border
from stagewright.program import GRADIENTS_UNDERWAY, Channel, Message
from stagewright.runtime.ranks.faults import PeerLostError, waiting_for
from stagewright.runtime.ranks.world import World
from stagewright.schedule import Edge, Unit
from stagewright.value import TensorSpec, is_ragged, tensors_of

from .announcements import Announcement, AnnouncementReader, send_announcement
from .slicing import Slicing, units_of_border
from .traffic import Traffic
from .transport import Transport
from .values import (
    Layout,
    Note,
    Payload,
    Precision,
    ValueMismatchError,
    has_layout,
    layout_of,
    planned_layout,
)

MAX_PENDING_SENDS = 16
"""Messages that may wait for their receiver before the sender waits too; bounds memory in evaluation."""


@dataclass(frozen=True, slots=True)
class _BorderSpecs:
    """What the plan says of one border's messages."""

    tensors: list[TensorSpec]
    is_ragged: bool


@dataclass(slots=True)
class _Receive:
    """A message that will come."""

    message: Message
    planned: Layout | None
    """What the plan says; None: it depends on the data."""
    layout: Layout | None
    """None: not known yet."""
    announcement: "Future[Announcement] | None" = None
    notes: list[Note] | None = None
    buffers: list[torch.Tensor] | None = None
    """None: not handed to the backend yet."""
    works: list[dist.Work] | None = None


@dataclass(slots=True)
class _Sending:
    """A message on its way: what must be kept until it has arrived."""

    announcing: list[dist.Work]
    works: list[dist.Work]
    kept: list[torch.Tensor]


class Exchange:
    """One rank's end of all channels."""

    def __init__(
        self,
        borders: Iterable[Border],
        precision: Precision,
        world: World,
        slicing: Slicing | None = None,
    ) -> None:
        """Make the rank's ends; nothing is sent."""
        self._borders = {
            (border.source, border.target, piece): _BorderSpecs(
                [t for v in of_unit.values for t in tensors_of(v.spec)],
                any(is_ragged(v.spec) for v in of_unit.values),
            )
            for border in borders
            for piece, of_unit in units_of_border(border, slicing)
        }
        """By source, target and slice."""
        self.traffic = Traffic()
        self._precision = precision
        self._layouts: dict[tuple[Edge, bool, int, int | None], Layout | None] = {}
        """By border, direction, samples and slice: what the plan says; None: it depends on the data."""
        self._timeout_s = world.timeout_s
        self._timeout = datetime.timedelta(seconds=world.timeout_s)
        self._transport = Transport(world)
        self._announcements = world.announcements
        self._reader = AnnouncementReader(world.announcements)
        self._sends: dict[Message, _Sending] = {}
        """In the order in which they started."""
        self._receives: dict[Message, _Receive] = {}
        self._unposted: dict[tuple[int, bool], deque[_Receive]] = defaultdict(deque)
        """By sender and direction: receives whose layout, or that of one before, is not known."""
        self._agreed: set[tuple[Edge, int, int]] = set()
        """Static borders, with sender and receiver, whose first message was announced."""
        self._gradients_due: dict[tuple[Edge, Unit], Layout] = {}
        """By border and unit: the gradients that will come for what was sent, where it is ragged."""

    def specs_of(self, edge: Edge, *, forward: bool, piece: int | None = None) -> list[TensorSpec]:
        """Return the tensors of a border's messages: all forward, those with a gradient backward."""
        specs = self._borders[edge.source, edge.target, piece].tensors
        return specs if forward else [spec for spec in specs if spec.requires_grad]

    @property
    def buffers_made(self) -> int:
        """How many receive buffers were made so far."""
        return self._transport.pool.num_made

    @property
    def buffer_bytes(self) -> int:
        """The bytes of all receive buffers, in use or not; on a GPU none are kept."""
        return self._transport.pool.bytes_made

    def connected(self, channels: Iterable[Channel], world: World) -> "Exchange":
        """Connect all ranks, return this; every rank calls it with the same channels in the same order."""
        if world.start is not None:
            with waiting_for("all ranks to connect"):
                dist.barrier(group=world.start)
                self._transport.connect(channels)
        return self

    def send(self, message: Message, payload: Payload, batch_size: int) -> None:
        """Start sending a message.

        Raises:
            ValueMismatchError: a tensor is not what the plan says.
            PeerLostError: the receiver is gone.
        """
        planned = self._planned(message, batch_size)
        if planned is not None and not has_layout(payload, planned):
            raise ValueMismatchError(f"{message}: {_difference(layout_of(payload), planned)}")
        announcing: list[dist.Work] = []
        works: list[dist.Work] = []
        kept: list[torch.Tensor] = []
        with waiting_for("the sending of", message):
            if self._is_announced(message, planned):
                assert self._announcements is not None
                layout = layout_of(payload)
                announcing, kept = send_announcement(message, payload, layout, self._announcements)
            for tensor in payload.tensors:
                work, sent = self._transport.send(tensor, message.receiver, message.forward)
                works += work
                kept.append(sent)
        if not message.forward:
            self._finish_earlier_gradients(message.edge)
        self.traffic.count(message, payload.tensors)
        self._sends[message] = _Sending(announcing, works, kept)
        if planned is None and message.forward and torch.is_grad_enabled():
            due = [part for part in layout_of(payload) if part.with_gradient]
            if due:
                self._gradients_due[message.edge, message.unit] = due
        self.advance()
        while len(self._sends) > MAX_PENDING_SENDS:
            self._finish_send(next(iter(self._sends)))

    def post(self, message: Message, batch_size: int) -> None:
        """Be ready to receive a message."""
        planned = self._planned(message, batch_size)
        receive = _Receive(message, planned, planned)
        if self._is_announced(message, planned):
            receive.layout = None
            receive.announcement = self._reader.ask(message)
        self._receives[message] = receive
        waiting = self._unposted[message.sender, message.forward]
        if receive.layout is not None and not waiting:
            self._hand_over(receive)
            return
        waiting.append(receive)
        self.advance()

    def advance(self) -> None:
        """Hand to the backend what can be received by now; waits for nothing."""
        for waiting in self._unposted.values():
            while waiting and self._is_known(waiting[0]):
                self._hand_over(waiting.popleft())

    def receive(self, message: Message, confirmed: Iterable[Message] = ()) -> Payload:
        """Wait for a posted message and return it.

        Args:
            message: which.
            confirmed: messages to its sender that it had used before, so they have arrived: their memory is
                let go without a wait, which takes long where there is nothing to wait for.

        Raises:
            PeerLostError: the sender is gone or did not send in time.
            ValueMismatchError: the sender's plan says something else of the border.
        """
        receive = self._receives[message]
        waiting = self._unposted[message.sender, message.forward]
        while receive.works is None:
            self._await_layout(waiting[0])
            self.advance()
        del self._receives[message]
        assert receive.buffers is not None and receive.layout is not None
        with waiting_for(message):
            for work in receive.works:
                work.wait()
            tensors = [self._transport.arrived(buffer) for buffer in receive.buffers]
        for sent in confirmed:
            self._sends.pop(sent, None)
        return Payload(tensors, [p.with_gradient for p in receive.layout], receive.notes or [])

    def drain(self) -> None:
        """Wait until all that was sent has arrived."""
        for message in list(self._sends):
            self._finish_send(message)
        assert not self._receives, "a posted message was never used"
        self._gradients_due.clear()

    def _planned(self, message: Message, batch_size: int) -> Layout | None:
        """Return a message's layout if it follows from the plan."""
        key = (message.edge, message.forward, batch_size, message.slice)
        if key not in self._layouts:
            edge, piece = message.edge, message.slice
            border = self._borders[edge.source, edge.target, piece]
            specs = self.specs_of(edge, forward=message.forward, piece=piece)
            layout = planned_layout(specs, batch_size, self._precision)
            self._layouts[key] = None if border.is_ragged else layout
        return self._layouts[key]

    def _is_announced(self, message: Message, planned: Layout | None) -> bool:
        """Return whether a message is announced; the same at both ends, asked once for each message."""
        if not message.forward:
            return False
        if planned is None:
            return True
        channel = (message.edge, message.sender, message.receiver)
        is_first = channel not in self._agreed
        self._agreed.add(channel)
        return is_first

    def _is_known(self, receive: _Receive) -> bool:
        """Find out a message's layout if that needs no wait; return whether it is known."""
        if receive.layout is not None:
            return True
        if receive.announcement is None:
            key = (receive.message.edge, receive.message.unit)
            receive.layout = self._gradients_due.pop(key, None)
            return receive.layout is not None
        if not receive.announcement.done():
            return False
        found = receive.announcement.result()
        if receive.planned is not None and found.layout != receive.planned:
            raise ValueMismatchError(
                f"{receive.message}: the sender's {_difference(found.layout, receive.planned)}"
            )
        receive.layout, receive.notes = found.layout, found.notes
        return True

    def _await_layout(self, receive: _Receive) -> None:
        """Wait until a message's layout can be known."""
        if receive.announcement is None:
            assert self._is_known(receive), "a gradient came before its value was sent"
            return
        try:
            receive.announcement.result(timeout=self._timeout_s)
        except FutureTimeoutError:
            raise PeerLostError(
                f"lost a peer while waiting for {receive.message} (no announcement for "
                f"{self._timeout_s:g} seconds)"
            ) from None

    def _hand_over(self, receive: _Receive) -> None:
        message, layout = receive.message, receive.layout
        assert layout is not None
        take = self._transport.pool.take
        receive.buffers = [
            take(part.shape, part.dtype, is_ragged=receive.planned is None) for part in layout
        ]
        receive.works = []
        with waiting_for(message):
            for buffer in receive.buffers:
                receive.works += self._transport.receive(buffer, message.sender, message.forward)

    def _finish_earlier_gradients(self, edge: Edge) -> None:
        """Wait for a border's gradients, so that with the next GRADIENTS_UNDERWAY are on their way."""
        earlier = [m for m in self._sends if m.edge == edge and not m.forward]
        for message in earlier[: max(0, len(earlier) + 1 - GRADIENTS_UNDERWAY)]:
            self._finish_send(message)

    def _finish_send(self, message: Message) -> None:
        sending = self._sends.pop(message)
        with waiting_for("the arrival of", message):
            for work in sending.announcing:
                # Their group itself would wait longer (World.announcements).
                work.wait(self._timeout)
            for work in sending.works:
                work.wait()


def _difference(found: Layout, planned: Layout) -> str:
    """Return the first difference between two layouts, as text."""
    if len(found) != len(planned):
        return f"message has {len(found)} tensors, expected {len(planned)}"
    for position, (a, b) in enumerate(zip(found, planned, strict=True)):
        if a != b:
            gradient = "" if a.with_gradient == b.with_gradient else ", one of them with a gradient"
            return (
                f"tensor {position} has shape {a.shape} and dtype {a.dtype}, expected {b.shape} and "
                f"{b.dtype}{gradient}"
            )
    return "layout is the same"
