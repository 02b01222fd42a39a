"""The cost model: pure functions of numbers, in ms and bytes; docs/cost-model.md states every equation.

They take floats or numpy arrays alike. A stage's cost is a maximum or a sum of these; a plan's step time is

    step_ms = sum over stages of (latency + incoming transfers) + max over stages of load

where latency is one micro-batch's forward and backward on the slowest replica, and load is what the busiest
part of a stage (compute, link or window of units in flight) still needs for the other micro-batches, with the
gradient sum and the update. The simulator (simulate.py) plays the real rows and is the judge of this formula.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stagewright.cluster import Link
from stagewright.document import InputError
from stagewright.flushless import FLUSHLESS
from stagewright.program import GRADIENTS_UNDERWAY
from stagewright.scheduling import FORWARD_ONLY

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Numbers = float | FloatArray

Objective = Literal["step-time", "throughput", "cost", "latency"]
"""cost: price of a step, so step time on given devices; latency: one micro-batch, forward only."""
Overlap = Literal["full", "none"]

FORWARD_UNITS = 2
"""Units that a rank holds without backward: one in work, one that arrives or leaves."""

STATE_COPIES = {"sgd": 0, "sgd-momentum": 1, "adam": 2, "adamw": 2}
"""Tensors of a parameter's size that each optimizer keeps per trained parameter, in its dtype."""


def transfer_ms(num_bytes: Numbers, links: Sequence[Link]) -> FloatArray:
    """Return the time of one message over the slowest of some links; nothing to send takes no time."""
    size = np.asarray(num_bytes, dtype=np.float64)
    slowest = np.zeros_like(size)
    for link in links:
        slowest = np.maximum(slowest, link.latency_ms + size / link.bandwidth_bytes_per_s * 1e3)
    return np.where(size > 0, slowest, 0.0)


def gradient_sum_ms(num_bytes: Numbers, num_ranks: int, links: Sequence[Link]) -> FloatArray:
    """Return the time of a ring all-reduce: 2 (m - 1) steps, each of 1 / m of the bytes, on the slowest link.

    Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations",
    JPDC 2009.
    """
    steps = 2 * (num_ranks - 1)
    return steps * transfer_ms(np.asarray(num_bytes, dtype=np.float64) / num_ranks, links)


def update_ms(whole_update_ms: float, trained_bytes: Numbers, all_trained_bytes: float) -> Numbers:
    """Return a stage's part of the measured update of the whole model, by bytes of trained parameters."""
    return whole_update_ms * trained_bytes / all_trained_bytes if all_trained_bytes else 0.0


def state_copies(optimizer: str) -> int:
    """Return how many tensors per trained parameter an optimizer keeps.

    Raises:
        InputError: the optimizer is unknown.
    """
    if optimizer not in STATE_COPIES:
        raise InputError(f"optimizer is {optimizer!r}, expected one of {', '.join(STATE_COPIES)}")
    return STATE_COPIES[optimizer]


def unit_bytes(
    taken: Numbers, saved: Numbers, sent: Numbers, recompute: bool
) -> tuple[Numbers, Numbers]:
    """Return what a rank keeps for each unit in flight, and besides for the one that runs forward again.

    What was sent stays until its gradient comes, as only that tells that it has arrived; a stage that runs
    forward again then makes it once more in its place.

    Args:
        taken: a unit's inputs, received or loaded.
        saved: what autograd saves for it.
        sent: the values that later stages receive.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, with a stage as the segment.
    """
    exchanged = taken + sent
    return (exchanged, saved) if recompute else (exchanged + saved, 0.0 * saved)


def message_bytes(
    schedule: str, received: Numbers, received_gradient: Numbers, sent_gradient: Numbers
) -> Numbers:
    """Return what the messages of a stage take besides those of its units in flight.

    A backward's gradient has come and the next one's buffer is posted; it makes the gradients to send, while
    GRADIENTS_UNDERWAY earlier ones may be on their way, and the next unit's receive buffer is posted. With
    gpipe a rank holds most in its first backward: no gradient is on its way yet, and no unit comes any more.

    Args:
        schedule: its name.
        received: bytes of a unit's messages forward from stages before.
        received_gradient: of the gradients that go back for them.
        sent_gradient: of the gradients that come back for what the stage sends.
    """
    if schedule == FORWARD_ONLY:
        return 0.0 * received
    arriving = 2 * sent_gradient
    if schedule == "gpipe":
        return arriving + received_gradient
    return arriving + (1 + GRADIENTS_UNDERWAY) * received_gradient + received


def memory_bytes(
    *,
    parameter_bytes: Numbers,
    trained_bytes: Numbers,
    buffer_bytes: Numbers,
    unit_bytes: Numbers,
    rerun_bytes: Numbers,
    message_bytes: Numbers,
    working_bytes: Numbers,
    copies: int,
    units: Numbers,
    versions: Numbers = 1,
) -> Numbers:
    """Return the bytes that a rank holds at most.

    Parameters, the trained ones once for each version (one with flush), their gradients and the optimizer's
    state, buffers; for each unit in flight what autograd saves and what the stage received and sent, or less
    if the stage runs forward again (unit_bytes); once, the other messages at its borders (message_bytes) and
    what the unit in work holds beyond what is saved for it.
    """
    return (
        parameter_bytes
        + (versions + copies) * trained_bytes
        + buffer_bytes
        + units * unit_bytes
        + rerun_bytes
        + message_bytes
        + working_bytes
    )


def deal_counts(replica_ms: FloatArray, num_microbatches: int) -> IntArray:
    """Return how many micro-batches each replica takes so that the busiest is done as early as can be.

    Each replica gets one, then each further micro-batch goes to the replica that would be done with it
    first (the first of equals): optimal, as exchanging any two micro-batches cannot help.

    Args:
        replica_ms: (R, ...) time per micro-batch; num_microbatches must be at least R.
    """
    replicas = len(replica_ms)
    assert replicas <= num_microbatches
    if np.array_equal(replica_ms, np.broadcast_to(replica_ms[:1], replica_ms.shape)):
        base, extra = divmod(num_microbatches, replicas)
        flat = base + (np.arange(replicas) < extra)
        shape = (replicas,) + (1,) * (replica_ms.ndim - 1)
        return np.broadcast_to(flat.reshape(shape), replica_ms.shape).astype(np.int64)
    counts = np.ones(replica_ms.shape, dtype=np.int64)
    index = np.arange(replicas).reshape((replicas,) + (1,) * (replica_ms.ndim - 1))
    for _ in range(num_microbatches - replicas):
        counts += index == np.argmin((counts + 1) * replica_ms, axis=0)
    return counts


def units_held(
    schedule: str, counts: IntArray, num_microbatches: int, replicas_behind: int
) -> IntArray:
    """Return the most units that each replica holds between forward and backward.

    gpipe: all of its own. forward: the one in work and the one that arrives or leaves. 1f1b: its part, by
    share, of one unit per replica from its stage to the last (stagewright.scheduling.units_allowed), and
    never more than its own. Without flush the same of all windows, of which one may have fewer.
    """
    if schedule == "gpipe":
        return counts
    if schedule == FORWARD_ONLY:
        return np.minimum(counts, FORWARD_UNITS)
    allowed = -(-replicas_behind * counts // num_microbatches)
    return allowed if schedule in FLUSHLESS else np.minimum(counts, allowed)


def versions_held(schedule: str, units: IntArray, counts: IntArray) -> IntArray:
    """Return the most versions of its weights that each replica holds (flushless.versions_needed, of arrays).

    Args:
        schedule: its name.
        units: most units in flight.
        counts: micro-batches per update, at least one.
    """
    if schedule == "pipedream-2bw":
        return np.full_like(units, 2)
    if schedule != "pipedream":
        return np.ones_like(units)
    return 1 + -(-(units - 1) // counts)


def has_flush(objective: Objective) -> bool:
    """Return whether an objective counts whole steps, from empty pipeline to empty pipeline."""
    return objective in ("step-time", "cost")


def objective_ms(objective: Objective, sum_ms: float, load_ms: float) -> float:
    """Return the time that an objective counts, of a plan's sum of latencies and its largest load."""
    if objective == "latency":
        return sum_ms
    return load_ms + (sum_ms if has_flush(objective) else 0.0)


def compute_load_ms(
    objective: Objective, latency_ms: Numbers, busy_ms: Numbers, end_ms: Numbers
) -> Numbers:
    """Return the load of a stage's busiest replica.

    Args:
        latency_ms: one micro-batch, forward and backward, on the slowest replica.
        busy_ms: all micro-batches of the replica that computes longest.
        end_ms: gradient sum and update.
    """
    return busy_ms + end_ms - (latency_ms if has_flush(objective) else 0.0)


def link_load_ms(objective: Objective, most_messages: Numbers, message_ms: Numbers) -> Numbers:
    """Return the load of the busiest receiver's link, one message at a time in each direction."""
    return (most_messages - (1 if has_flush(objective) else 0)) * message_ms


def window_rounds(
    objective: Objective, replica_ms: FloatArray, counts: IntArray, units: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Return (slope, intercept): a stage's window load is the greatest slope x behind_ms + intercept.

    A replica holds at most u units, and each stays for at least its own time t and behind_ms, the time of
    one micro-batch through all later stages and back. So its n micro-batches take n / u round trips of
    t + behind_ms; of these, step-time counts latency + behind_ms elsewhere.

    Args:
        replica_ms, counts, units: (R, ...) t, n and u of each replica; the result has the same shape.
    """
    rounds = counts / np.maximum(units, 1)
    if objective == "latency":  # Nothing waits for a backward.
        return np.zeros_like(rounds), np.zeros_like(replica_ms)
    if not has_flush(objective):
        return rounds, rounds * replica_ms
    return rounds - 1, rounds * replica_ms - replica_ms.max(axis=0)
