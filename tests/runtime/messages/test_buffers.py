"""Buffers: memory is taken again when, and only when, nothing refers to it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stagewright.runtime.messages.buffers import (
    LEAST_BYTES,
    SIZES_PER_DOUBLING,
    BufferPool,
    rounded_size,
)

CPU = torch.device("cpu")


def test_memory_is_taken_again_only_when_no_view_and_no_graph_needs_it() -> None:
    pool = BufferPool(CPU)
    received = pool.take((4, 3), torch.float64).fill_(2).requires_grad_()
    loss = (received[1:] ** 2).sum()
    view = received.detach()[0]
    del received
    other = pool.take((4, 3), torch.float64)
    assert (pool.num_made, pool.num_in_use) == (2, 2)
    torch.autograd.backward(loss)
    del loss, other
    assert pool.num_in_use == 1, "a view is still there"
    assert view.tolist() == [2, 2, 2]
    del view
    assert pool.num_in_use == 0
    again = [pool.take((4, 3), torch.float64) for _ in range(2)]
    assert pool.num_made == 2
    assert len({tensor.data_ptr() for tensor in again}) == 2


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.complex64, torch.int64])
def test_a_buffer_has_any_type_and_may_be_empty(dtype: torch.dtype) -> None:
    pool = BufferPool(CPU)
    assert pool.take((2, 0), dtype).shape == (2, 0)
    scalar = pool.take((), dtype)
    assert scalar.dtype == dtype and scalar.shape == ()
    assert scalar.data_ptr() % 64 == 0


def test_other_ragged_sizes_soon_need_no_new_memory() -> None:
    pool = BufferPool(CPU)
    sizes = torch.Generator().manual_seed(0)
    for step in range(200):
        rows = int(torch.randint(100, 200, (1,), generator=sizes))
        pool.take((rows, 8), torch.float32, is_ragged=True)
        if step == 50:
            made = pool.num_made
    assert pool.num_made == made <= SIZES_PER_DOUBLING + 2


@given(st.integers(0, 10**9))
def test_rounding_up_wastes_at_most_a_quarter(num_bytes: int) -> None:
    size = rounded_size(num_bytes)
    assert size >= max(num_bytes, LEAST_BYTES)
    assert size <= max(LEAST_BYTES, num_bytes * (1 + 1 / SIZES_PER_DOUBLING) + 1)
    assert rounded_size(size) == size
