"""The stages that are possible under a threshold, as arcs from a cut to a later cut.

Arcs are grouped by the cut at their end, ends falling: stages are chosen from the last layer, where the
replicas behind a stage, hence its units in flight and its memory, are known.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stagewright.optimizer.costs.cost import FloatArray, IntArray

from .chain import Costs
from .compiled import compiled, compiled_inside
from .stage import SLACK, load_ms, units_held

BoolArray = NDArray[np.bool_]


class Arcs(NamedTuple):
    """(A,) each: arc a is a stage of layers tail[a] up to, not including, the cut of its group."""

    start: IntArray
    """(L + 2,): the arcs that end at cut j are start[j] up to, not including, stop[j]."""
    stop: IntArray
    tail: IntArray
    kind: IntArray
    step: IntArray
    """Index into Costs.replicas of the least replicas that the threshold and memory allow."""
    replicas: IntArray
    time_ms: FloatArray
    """One micro-batch with its messages."""
    fits: IntArray
    least_behind: IntArray
    """(L + 1,): no plan has fewer replicas behind the cut; a large number if the end cannot be reached."""


@compiled_inside
def next_step(costs: Costs, step: int, fits: int, behind: int, most: int) -> int:
    """Return the first index into Costs.replicas from `step` on whose units fit; -1 if none up to `most`."""
    replicas = costs.replicas
    if behind > 0 and not costs.holds_all:
        dealt = max(fits, (fits - 1) * costs.num_microbatches // behind)
        step = max(step, costs.replicas_for[min(dealt, costs.num_microbatches)])
    elif costs.holds_all:
        step = max(step, costs.replicas_for[min(fits, costs.num_microbatches)])
    while step < len(replicas) and replicas[step] <= most:
        if units_held(costs, replicas[step], behind) <= fits:
            return step
        step += 1
    return -1


@compiled_inside
def least_step(
    costs: Costs, threshold_ms: float, kind: int, first: int, last: int
) -> tuple[int, float, bool]:
    """Return (index of the least replicas whose load is within a threshold or -1, time, give up).

    The last value is true if no longer stage can be within it either.
    """
    most = costs.most[kind]
    if most < 1:
        return -1, 0.0, True
    compute = costs.compute_ms[kind, last, first]
    allowed = threshold_ms * SLACK + (compute if costs.is_step_time else 0.0)
    num = costs.num_microbatches
    if ((num + most - 1) // most) * compute > allowed:
        return -1, 0.0, not costs.is_step_time or most < num
    step = 0
    if compute > 0:
        dealt = int(min(allowed / compute * (1 + 1e-9), float(num)))
        step = costs.replicas_for[dealt]
    while step < len(costs.replicas) and costs.replicas[step] <= most:
        load, time = load_ms(costs, kind, first, last, costs.replicas[step])
        if load <= threshold_ms * SLACK:
            return step, time, False
        step += 1
    return -1, 0.0, False


@compiled_inside
def is_needless(costs: Costs, kind: int, first: int, last: int, replicas: int) -> bool:
    """Return whether a stage of at least some replicas need not run forward again: all its units fit."""
    plain = costs.type_of[kind]
    behind = costs.counts.sum() - replicas
    held = units_held(costs, replicas, behind)
    return bool(plain != kind and held <= costs.fits[plain, last, first])


@compiled
def find_arcs(costs: Costs, threshold_ms: float) -> Arcs:
    """Return every stage that some plan within a threshold may have.

    A stage's replicas are raised to what its memory needs with the least replicas behind it.
    """
    size, kinds = costs.num_cuts, len(costs.type_of)
    room = kinds * size * (size + 1) // 2
    tail, kind_of = np.empty(room, np.int64), np.empty(room, np.int64)
    step_of, replicas = np.empty(room, np.int64), np.empty(room, np.int64)
    fits_of, time_ms = np.empty(room, np.int64), np.empty(room, np.float64)
    start, stop = np.zeros(size + 2, np.int64), np.zeros(size + 2, np.int64)
    behind = np.full(size + 1, 2**40, np.int64)
    behind[size] = 0
    number = 0
    for last in range(size, 0, -1):
        start[last] = stop[last] = number
        if behind[last] >= 2**40:
            continue
        for kind in range(kinds):
            most = costs.most[kind]
            for first in range(last - 1, -1, -1):
                fits = costs.fits[kind, last, first]
                if fits < 1:
                    continue
                step, time, over = least_step(costs, threshold_ms, kind, first, last)
                if over and costs.is_chain:
                    break
                if step < 0:
                    continue
                step = next_step(costs, step, fits, behind[last], most)
                if step < 0 or is_needless(costs, kind, first, last, costs.replicas[step]):
                    continue
                tail[number], kind_of[number], step_of[number] = first, kind, step
                replicas[number] = costs.replicas[step]
                time_ms[number], fits_of[number] = time, fits
                number += 1
                behind[first] = min(behind[first], behind[last] + costs.replicas[step])
        stop[last] = number
    return Arcs(
        start,
        stop,
        tail[:number].copy(),
        kind_of[:number].copy(),
        step_of[:number].copy(),
        replicas[:number].copy(),
        time_ms[:number].copy(),
        fits_of[:number].copy(),
        behind,
    )


@compiled
def keep_arcs(arcs: Arcs, keep: BoolArray) -> Arcs:
    """Return the arcs for which `keep` is true."""
    start, stop = arcs.start.copy(), arcs.stop.copy()
    number = 0
    for last in range(len(start) - 2, 0, -1):
        begin = number
        for arc in range(arcs.start[last], arcs.stop[last]):
            number += keep[arc]
        start[last], stop[last] = begin, number
    return Arcs(
        start,
        stop,
        arcs.tail[keep],
        arcs.kind[keep],
        arcs.step[keep],
        arcs.replicas[keep],
        arcs.time_ms[keep],
        arcs.fits[keep],
        arcs.least_behind,
    )
