"""Announcements: what is read is what was written; rubbish is refused; a reader leaves nothing behind."""

import threading
import weakref
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from stagewright.program import Message
from stagewright.runtime.messages.announcements import (
    HEAD_BYTES,
    Announcement,
    AnnouncementReader,
    bytes_after,
    decode,
    encode,
)
from stagewright.runtime.messages.values import Note, Part, ValueMismatchError
from stagewright.schedule import Edge

parts = st.builds(
    Part,
    shape=st.lists(st.integers(0, 2**40), max_size=5).map(tuple),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.bool, torch.complex64]),
    with_gradient=st.booleans(),
)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(-1e9, 1e9) | st.text()
)
notes = scalars | st.lists(scalars, max_size=4)


@given(st.lists(parts, max_size=40), st.lists(notes, max_size=6))
def test_an_announcement_is_read_as_it_was_written(layout: list[Part], told: list[Note]) -> None:
    head, *rest = encode(layout, told)
    assert head.numel() == HEAD_BYTES
    assert bytes_after(head) == sum(part.numel() for part in rest)
    assert decode(head, rest[0] if rest else None) == Announcement(layout, told)


@pytest.mark.parametrize("fill", [0, 255])
def test_rubbish_is_refused(fill: int) -> None:
    head = torch.full((HEAD_BYTES,), fill, dtype=torch.uint8)
    head[:8] = torch.tensor([9, 0, 0, 0, 0, 0, 0, 0], dtype=torch.uint8)
    with pytest.raises(ValueMismatchError, match="cannot be read"):
        decode(head, None)


def test_a_reader_that_is_dropped_ends_its_thread_and_lets_its_group_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = encode([], [])[0]

    class Arrived:
        def wait(self) -> bool:
            return True

    def arrive(buffer: torch.Tensor, *_: Any, **__: Any) -> Arrived:
        buffer.copy_(head)
        return Arrived()

    class Group:
        pass

    monkeypatch.setattr(dist, "irecv", arrive)
    before = set(threading.enumerate())
    group: Any = Group()
    reader, gone = AnnouncementReader(group), weakref.ref(group)
    message = Message(Edge(0, 1), microbatch=0, forward=True, sender=0, receiver=1)
    assert reader.ask(message).result(timeout=10) == Announcement([], [])
    (thread,) = set(threading.enumerate()) - before
    del reader, group
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert gone() is None
