"""Announcements: what the receiver of a ragged message must know before it can be ready for its tensors.

An announcement is sent right before the tensors, in a gloo group of its own (on a GPU, too: reading it
from the device would stop the device). The receiver asks for it a unit before the message is needed, and a
thread waits for it, so the tensors can travel while both ends compute.
"""

import queue
import threading
import weakref
from concurrent.futures import Future
from dataclasses import dataclass

import msgspec
import torch
import torch.distributed as dist

from stagewright.program import Message
from stagewright.runtime.ranks.faults import waiting_for

from .values import Layout, Note, Part, Payload, ValueMismatchError

HEAD_BYTES = 512
"""What is always sent; the content's length comes first. The rest of a longer one is a second message."""
LENGTH_BYTES = 8
HEAD_TAG, REST_TAG = 1, 2

PartData = tuple[list[int], str, bool]


class _Content(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """An announcement on its way."""

    parts: list[PartData]
    notes: list[Note]


@dataclass(frozen=True, slots=True)
class Announcement:
    """The layout of a message that is about to come, and its notes."""

    layout: Layout
    notes: list[Note]


def encode(layout: Layout, notes: list[Note]) -> list[torch.Tensor]:
    """Return the one or two byte tensors that announce a message."""
    parts = [(list(p.shape), str(p.dtype)[len("torch.") :], p.with_gradient) for p in layout]
    content = msgspec.msgpack.encode(_Content(parts, notes))
    head = bytearray(HEAD_BYTES)
    head[:LENGTH_BYTES] = len(content).to_bytes(LENGTH_BYTES, "little")
    room = HEAD_BYTES - LENGTH_BYTES
    head[LENGTH_BYTES : LENGTH_BYTES + min(len(content), room)] = content[:room]
    messages = [torch.frombuffer(head, dtype=torch.uint8)]
    if len(content) > room:
        messages.append(torch.frombuffer(bytearray(content[room:]), dtype=torch.uint8))
    return messages


def bytes_after(head: torch.Tensor) -> int:
    """Return how many bytes follow the first message of an announcement."""
    length = int.from_bytes(head[:LENGTH_BYTES].numpy().tobytes(), "little")
    return max(0, length - (HEAD_BYTES - LENGTH_BYTES))


def decode(head: torch.Tensor, rest: torch.Tensor | None) -> Announcement:
    """Return the announcement that some bytes are.

    Raises:
        ValueMismatchError: they are none.
    """
    length = int.from_bytes(head[:LENGTH_BYTES].numpy().tobytes(), "little")
    content = head[LENGTH_BYTES:].numpy().tobytes()
    if rest is not None:
        content += rest.numpy().tobytes()
    try:
        found = msgspec.msgpack.decode(content[:length], type=_Content)
        layout = [Part(tuple(s), _dtype(name), gradient) for s, name, gradient in found.parts]
    except msgspec.MsgspecError as error:
        raise ValueMismatchError(f"an announcement cannot be read: {error}") from None
    return Announcement(layout, found.notes)


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueMismatchError(f"an announcement names the dtype {name!r}, which is none")
    return dtype


def send_announcement(
    message: Message, payload: Payload, layout: Layout, group: dist.ProcessGroup
) -> tuple[list[dist.Work], list[torch.Tensor]]:
    """Start announcing a message; return what is under way and what must be kept until it has arrived."""
    parts = encode(layout, payload.notes)
    tags = (HEAD_TAG, REST_TAG)
    works = [
        dist.isend(part, message.receiver, group=group, tag=tag)
        for part, tag in zip(parts, tags, strict=False)
    ]
    return [work for work in works if work is not None], parts


class AnnouncementReader:
    """Waits for announcements in the order in which they were asked for, on a thread of its own."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        """The group holds all ranks, on gloo; None where there is one rank."""
        self._group = group
        self._asked: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        # The thread holds the queue, not the reader, so it ends with the reader and keeps no group alive:
        # each group of gloo has a thread that wakes a hundred times a second.
        weakref.finalize(self, self._asked.put, None)

    def ask(self, message: Message) -> "Future[Announcement]":
        """Be ready for the announcement of a message; the result raises PeerLostError if none comes."""
        head = torch.empty(HEAD_BYTES, dtype=torch.uint8)
        with waiting_for(str(message)):
            work = dist.irecv(head, message.sender, group=self._group, tag=HEAD_TAG)
        assert work is not None
        asked = _Asked(message, head, work, self._group, Future())
        self._asked.put(asked)
        if self._thread is None:
            # A daemon: it may wait for a dead peer while the rank ends.
            self._thread = threading.Thread(
                target=_read, args=(self._asked,), name="stagewright-announcements", daemon=True
            )
            self._thread.start()
        return asked.result


@dataclass(frozen=True, slots=True)
class _Asked:
    message: Message
    head: torch.Tensor
    work: dist.Work
    group: dist.ProcessGroup | None
    result: "Future[Announcement]"


def _read(asked: "queue.SimpleQueue[_Asked | None]") -> None:
    """Finish what was asked for in its order, until None comes."""
    while (one := asked.get()) is not None:
        try:
            one.result.set_result(_finish(one))
        except Exception as error:  # noqa: BLE001 - raised again where the result is taken
            one.result.set_exception(error)
        del one


def _finish(asked: _Asked) -> Announcement:
    with waiting_for(f"the announcement of the {asked.message}"):
        asked.work.wait()
        rest = None
        if count := bytes_after(asked.head):
            rest = torch.empty(count, dtype=torch.uint8)
            work = dist.irecv(rest, asked.message.sender, group=asked.group, tag=REST_TAG)
            assert work is not None
            work.wait()
    return decode(asked.head, rest)
