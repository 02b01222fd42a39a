"""Label setting from the last layer: every label is a way to plan the layers behind a cut.

A label holds the devices that it uses of each type, its stages, and the time of a micro-batch through them.
It is dropped if some bound says that no completion is within the limits, or if another label at its cut uses
no more of anything. With a beam only the most promising labels of a cut are expanded, and nothing is proven.

Windows: more replicas behind a stage allow more units in flight. A label with fewer of them may run into a
window that another would not, so the plain search, which drops the other, proves something only if no window
ever stopped it; the strict search keeps both and tries every number of replicas.

Source: Desrochers and Soumis, "A generalized permanent labelling algorithm for the shortest path problem with
time windows", INFOR 1988; beams and bounds as in A*.
"""

from typing import NamedTuple

import numpy as np

from stagewright.optimizer.costs.cost import FloatArray, IntArray

from .arcs import Arcs, next_step
from .chain import Costs
from .compiled import compiled, compiled_inside
from .stage import SLACK, load_ms, units_held, window_ms

MOST_COMPARED = 2000
"""Labels kept at a cut, the last ones first, that a label is compared with."""


class Completions(NamedTuple):
    """Q bounds of what the layers before a cut cost, each at some prices; the first one also ranks labels."""

    per_replica: FloatArray
    """(Q, K)."""
    per_stage: FloatArray
    per_ms: FloatArray
    limit: FloatArray
    """(Q,): dearer labels are dropped; step-time: plus the cut-off."""
    least: FloatArray
    """(Q, L + 1, 1 or devices + 1), the last axis by replicas behind."""


class Labels(NamedTuple):
    """Room for labels; row 0 is the empty plan behind the last layer."""

    counts: IntArray
    stages: IntArray
    time_ms: FloatArray
    parent: IntArray
    cut: IntArray
    kind: IntArray
    replicas: IntArray
    following: IntArray
    """The next label of the same cut; -1 at the last."""
    used: IntArray
    """Replicas in all."""


class Limits(NamedTuple):
    """What a search keeps to."""

    threshold_ms: float
    cutoff_ms: float
    """Step-time: only plans of less time count."""
    max_stages: int
    """0: any number."""
    beam: int
    """Labels expanded per cut; 0: all."""
    has_windows: bool
    stop: IntArray
    """(1,): others set it to 1 to end the search."""
    strict: bool
    """Try every number of replicas, and compare only labels of as many."""


class Outcome(NamedTuple):
    """What a search found."""

    plan: IntArray
    """(S, 4): first layer, behind the last, kind, replicas of each stage; empty if none was found."""
    time_ms: float
    is_complete: bool
    """Nothing was cut off, so there is no better plan within the limits."""
    was_stopped: bool
    """Incomplete only as windows stopped the plain search; the strict one may complete."""
    num_labels: int


@compiled_inside
def make_labels(room: int, kinds: int) -> Labels:
    """Return room for labels, uninitialised but the empty plan."""
    counts = np.empty((room, kinds), np.int64)
    stages, parent, cut = (
        np.empty(room, np.int64),
        np.empty(room, np.int64),
        np.empty(room, np.int64),
    )
    kind, replicas = np.empty(room, np.int64), np.empty(room, np.int64)
    following, used = np.empty(room, np.int64), np.empty(room, np.int64)
    time_ms = np.empty(room, np.float64)
    counts[0] = 0
    stages[0] = cut[0] = used[0] = 0
    parent[0] = following[0] = -1
    time_ms[0] = 0.0
    return Labels(counts, stages, time_ms, parent, cut, kind, replicas, following, used)


@compiled_inside
def value_of(
    completions: Completions,
    which: int,
    counts: IntArray,
    stages: int,
    time_ms: float,
    cut: int,
    used: int,
) -> float:
    """Return a bound of a label's completions."""
    least = completions.least
    value: float = completions.per_stage[which] * stages + completions.per_ms[which] * time_ms
    for kind in range(len(counts)):
        value += completions.per_replica[which, kind] * counts[kind]
    value += least[which, cut, used if least.shape[2] > 1 else 0]
    return value


@compiled_inside
def is_hopeless(
    is_step_time: bool,
    completions: Completions,
    counts: IntArray,
    stages: int,
    time_ms: float,
    cut: int,
    used: int,
    cutoff_ms: float,
) -> bool:
    """Return whether a bound says that no completion is within the limits."""
    for which in range(len(completions.limit)):
        value = value_of(completions, which, counts, stages, time_ms, cut, used)
        limit = completions.limit[which]
        if is_step_time:
            if value >= (limit + cutoff_ms) * (1 - 1e-12):
                return True
        elif value > limit + 1e-9:
            return True
    return False


@compiled_inside
def dominates(labels: Labels, one: int, other: int, limits: Limits, with_time: bool) -> bool:
    """Return whether a label uses no more of anything than another of its cut."""
    if limits.strict and limits.has_windows and labels.used[one] != labels.used[other]:
        return False
    if with_time and labels.time_ms[one] > labels.time_ms[other]:
        return False
    if limits.max_stages > 0 and labels.stages[one] > labels.stages[other]:
        return False
    for kind in range(labels.counts.shape[1]):
        if labels.counts[one, kind] > labels.counts[other, kind]:
            return False
    return True


@compiled_inside
def kept_labels(
    labels: Labels,
    completions: Completions,
    head: int,
    cut: int,
    limits: Limits,
    with_time: bool,
    cutoff_ms: float,
    is_step_time: bool,
) -> tuple[IntArray, bool]:
    """Return the labels of a cut to expand, the most promising first, and whether those are all.

    A label that uses no more than another is no less promising, so looking back suffices.
    """
    number, label = 0, head
    while label >= 0:
        number, label = number + 1, labels.following[label]
    found, keys = np.empty(number, np.int64), np.empty(number)
    number, label = 0, head
    while label >= 0:
        found[number] = label
        keys[number] = value_of(
            completions,
            0,
            labels.counts[label],
            labels.stages[label],
            labels.time_ms[label],
            cut,
            labels.used[label],
        )
        number, label = number + 1, labels.following[label]
    kept, number = np.empty(len(found), np.int64), 0
    for index in np.argsort(keys, kind="mergesort"):
        label = found[index]
        if is_step_time and keys[index] >= completions.limit[0] + cutoff_ms:
            break
        dominated = False
        for back in range(number - 1, max(-1, number - 1 - MOST_COMPARED), -1):
            if dominates(labels, kept[back], label, limits, with_time):
                dominated = True
                break
        if dominated:
            continue
        if limits.beam and number == limits.beam:
            return kept[:number], False
        kept[number] = label
        number += 1
    return kept[:number], True


@compiled_inside
def next_replicas(
    costs: Costs, limits: Limits, arcs: Arcs, arc: int, last: int, used: int, current: int
) -> int:
    """Return the next number of replicas above `current` that a stage may have; 0 if there is none."""
    kind, first = arcs.kind[arc], arcs.tail[arc]
    most = costs.most[kind]
    allowed = limits.threshold_ms * SLACK
    if limits.strict:
        count: int = max(current + 1, arcs.replicas[arc])
        while count <= most:
            fits = units_held(costs, count, used) <= arcs.fits[arc]
            if fits and load_ms(costs, kind, first, last, count)[0] <= allowed:
                return count
            count += 1
        return 0
    if current > 0:
        return 0
    step = next_step(costs, arcs.step[arc], arcs.fits[arc], used, most)
    while step >= 0:
        count = int(costs.replicas[step])
        if load_ms(costs, kind, first, last, count)[0] <= allowed:
            return count
        step = next_step(costs, step + 1, arcs.fits[arc], used, most)
    return 0


@compiled_inside
def is_affordable(costs: Costs, counts: IntArray, device_type: int) -> bool:
    """Return whether there are so many devices, and they cost at most the budget."""
    if counts[device_type] > costs.counts[device_type]:
        return False
    if costs.budget == np.inf:
        return True
    price = 0.0
    for one in range(len(counts)):
        price += counts[one] * costs.hourly[one]
    return price <= costs.budget * (1 + 1e-12)


@compiled_inside
def read_plan(labels: Labels, label: int, first_stage: IntArray) -> IntArray:
    """Return the stages of a plan: the first stage, then those of a label."""
    number, current = 1, label
    while labels.parent[current] >= 0:
        number, current = number + 1, labels.parent[current]
    plan = np.empty((number, 4), np.int64)
    plan[0] = first_stage
    current = label
    for row in range(1, number):
        behind = labels.parent[current]
        plan[row, 0], plan[row, 1] = labels.cut[current], labels.cut[behind]
        plan[row, 2], plan[row, 3] = labels.kind[current], labels.replicas[current]
        current = behind
    return plan


@compiled_inside
def extend(
    costs: Costs,
    limits: Limits,
    arcs: Arcs,
    completions: Completions,
    labels: Labels,
    head: IntArray,
    label: int,
    number: int,
    cutoff_ms: float,
    best: IntArray,
) -> tuple[int, float, int]:
    """Add a label's extensions; return (labels or -1 if there is no room, cut-off, stopped by windows).

    A plan of less time than the cut-off is left in `best`: label, behind its first stage, type, replicas.
    """
    last, used, behind_ms = labels.cut[label], labels.used[label], labels.time_ms[label]
    stages, stopped = labels.stages[label] + 1, 0
    counts = labels.counts[label].copy()
    if limits.max_stages > 0 and stages > limits.max_stages:
        return number, cutoff_ms, 0
    for arc in range(arcs.start[last], arcs.stop[last]):
        kind, first = arcs.kind[arc], arcs.tail[arc]
        device_type = costs.type_of[kind]
        counts[:] = labels.counts[label]
        # Not a literal, as for `number` below.
        count = int(np.int64(0))
        while True:
            count = next_replicas(costs, limits, arcs, arc, last, used, count)
            counts[device_type] = labels.counts[label, device_type] + count
            if count == 0 or not is_affordable(costs, counts, device_type):
                break
            time = behind_ms + load_ms(costs, kind, first, last, count)[1]
            if time >= cutoff_ms:
                break
            total = used + count
            if first > 0 and is_hopeless(
                costs.is_step_time, completions, counts, stages, time, first, total, cutoff_ms
            ):
                continue
            if limits.has_windows:
                window = window_ms(costs, kind, first, last, count, used, behind_ms)
                if window > limits.threshold_ms * SLACK:
                    stopped += 1
                    continue
            if first == 0:
                best[0], best[1], best[2], best[3] = label, last, kind, count
                cutoff_ms = time
                continue
            if number == len(labels.cut):
                return -1, cutoff_ms, stopped
            labels.counts[number] = counts
            labels.stages[number], labels.time_ms[number] = stages, time
            labels.parent[number], labels.cut[number] = label, first
            labels.kind[number], labels.replicas[number] = kind, count
            labels.following[number], labels.used[number] = head[first], total
            head[first] = number
            number += 1
    return number, cutoff_ms, stopped


@compiled
def expand_labels(
    costs: Costs, limits: Limits, arcs: Arcs, completions: Completions, room: int
) -> Outcome:
    """Return a plan within a threshold: the first found, or for step-time that of the least time.

    Incomplete if `room` labels do not suffice.
    """
    size, kinds = costs.num_cuts, len(costs.counts)
    labels = make_labels(room, kinds)
    labels.cut[0] = size
    head = np.full(size + 1, -1, np.int64)
    head[size] = 0
    complete, stopped, cutoff_ms = True, 0, limits.cutoff_ms
    # Not a literal: numba would compile `extend` for that, too.
    number = int(head[size]) + 1
    best = np.full(4, -1, np.int64)
    with_time = limits.has_windows or costs.is_step_time
    for last in range(size, 0, -1):
        order, whole = kept_labels(
            labels, completions, head[last], last, limits, with_time, cutoff_ms, costs.is_step_time
        )
        complete = complete and whole
        for label in order:
            number, cutoff_ms, windows = extend(
                costs, limits, arcs, completions, labels, head, label, number, cutoff_ms, best
            )
            stopped += windows
            if limits.stop[0] != 0:
                complete = False
                break
            if number < 0 or (best[0] >= 0 and not costs.is_step_time):
                break
        if number < 0 or limits.stop[0] != 0 or (best[0] >= 0 and not costs.is_step_time):
            complete = False
            break
    plan = np.empty((0, 4), np.int64)
    if best[0] >= 0:
        plan = read_plan(labels, best[0], np.array([0, best[1], best[2], best[3]]))
    by_windows = stopped > 0 and not limits.strict
    return Outcome(plan, cutoff_ms, complete and not by_windows, complete and by_windows, number)
