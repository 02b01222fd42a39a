"""Announcements: what is read is what was written; rubbish is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stagewright.runtime.messages.announcements import (
    HEAD_BYTES,
    Announcement,
    bytes_after,
    decode,
    encode,
)
from stagewright.runtime.messages.values import Note, Part, ValueMismatchError

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
