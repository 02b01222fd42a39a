"""The cost model's functions against hand figures and exhaustive search."""

import itertools

import numpy as np
import pytest

from stagewright.cluster import Link
from stagewright.document import InputError
from stagewright.optimizer.costs.cost import (
    deal_counts,
    gradient_sum_ms,
    memory_bytes,
    message_bytes,
    state_copies,
    transfer_ms,
    unit_bytes,
    units_held,
    update_ms,
)
from stagewright.program import GRADIENTS_UNDERWAY
from stagewright.schedule import Pipeline, Worker
from stagewright.scheduling import units_allowed

LINK = Link(bandwidth_bytes_per_s=1000.0, latency_ms=5.0)


def test_a_transfer_takes_latency_and_bytes_over_bandwidth_and_nothing_takes_nothing() -> None:
    assert float(transfer_ms(100.0, [LINK])) == 105.0
    assert float(transfer_ms(0.0, [LINK])) == 0.0


def test_the_slowest_link_decides() -> None:
    slow = Link(bandwidth_bytes_per_s=100.0, latency_ms=0.0)
    assert transfer_ms(np.array([0.1, 100.0]), [LINK, slow]).tolist() == [5.1, 1000.0]


def test_a_gradient_sum_moves_twice_the_bytes_but_for_one_part() -> None:
    free = Link(bandwidth_bytes_per_s=1000.0, latency_ms=0.0)
    assert float(gradient_sum_ms(400.0, 4, [free])) == pytest.approx(2 * 3 / 4 * 400)
    assert float(gradient_sum_ms(400.0, 1, [LINK])) == 0.0
    assert float(gradient_sum_ms(400.0, 4, [LINK])) == pytest.approx(6 * 5 + 600)


@pytest.mark.parametrize("seed", range(10))
def test_no_deal_of_micro_batches_is_done_earlier(seed: int) -> None:
    rng = np.random.default_rng(seed)
    replicas, total = 3, int(rng.integers(3, 10))
    ms = rng.uniform(1, 4, replicas)
    counts = deal_counts(ms, total)
    every = (c for c in itertools.product(range(1, total), repeat=replicas) if sum(c) == total)
    assert counts.sum() == total
    assert counts.min() >= 1
    best = min(max(np.array(c) * ms) for c in every)
    assert max(counts * ms) == pytest.approx(best)


@pytest.mark.parametrize("shares", [(1,), (1, 1), (3, 1), (2, 3, 5)])
def test_units_held_agree_with_the_schedule_s_rule(shares: tuple[int, ...]) -> None:
    workers = tuple(Worker(rank, share) for rank, share in enumerate(shares))
    behind = (Worker(8, 1), Worker(9, 1))
    pipeline = Pipeline((workers, behind), (), 3 * sum(shares))
    counts = np.array([3 * share for share in shares])
    held = units_held("1f1b", counts, 3 * sum(shares), len(shares) + 2)
    allowed = units_allowed(pipeline)[0]
    assert held.tolist() == [min(allowed[r], 3 * s) for r, s in enumerate(shares)]
    assert units_held("gpipe", counts, 3 * sum(shares), 9).tolist() == counts.tolist()


def test_memory_is_the_sum_of_its_parts() -> None:
    found = memory_bytes(
        parameter_bytes=100.0,
        trained_bytes=80.0,
        buffer_bytes=7.0,
        unit_bytes=10.0,
        rerun_bytes=5.0,
        message_bytes=3.0,
        working_bytes=2.0,
        copies=2,
        units=4.0,
    )
    assert found == 100 + 3 * 80 + 7 + 40 + 5 + 3 + 2


def test_a_stage_that_runs_forward_again_keeps_messages_of_units_and_one_unit_s_results() -> None:
    assert unit_bytes(6.0, 16.0, 4.0, False) == (26.0, 0.0)
    assert unit_bytes(6.0, 16.0, 4.0, True) == (10.0, 16.0)


def test_messages_beside_the_units_in_flight_are_those_that_the_schedule_has_on_their_way() -> None:
    assert message_bytes("forward", 5.0, 0.0, 0.0) == 0.0
    assert message_bytes("gpipe", 5.0, 3.0, 7.0) == 3 + 2 * 7
    assert message_bytes("1f1b", 5.0, 3.0, 7.0) == 5 + (1 + GRADIENTS_UNDERWAY) * 3 + 2 * 7


def test_the_update_is_shared_out_by_trained_bytes() -> None:
    assert update_ms(12.0, 25.0, 100.0) == 3.0
    assert update_ms(12.0, 0.0, 0.0) == 0.0


def test_an_unknown_optimizer_is_refused() -> None:
    assert state_copies("adamw") == 2
    with pytest.raises(InputError, match="expected one of sgd"):
        state_copies("lion")
