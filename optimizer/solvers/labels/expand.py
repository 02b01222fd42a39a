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

from stagewright.optimizer.costs.cost import IntArray

from .arrays import Arcs, Completions, Costs, Labels, Limits
from .kernels.library import call_for_ms


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


def expand_labels(
    costs: Costs, limits: Limits, arcs: Arcs, completions: Completions, room: int
) -> Outcome:
    """Return a plan within a threshold: the first found, or for step-time that of the least time.

    Incomplete if `room` labels do not suffice.
    """
    labels = Labels(
        counts=np.empty((room, len(costs.counts)), np.int64),
        stages=np.empty(room, np.int64),
        time_ms=np.empty(room),
        parent=np.empty(room, np.int64),
        cut=np.empty(room, np.int64),
        kind=np.empty(room, np.int64),
        replicas=np.empty(room, np.int64),
        following=np.empty(room, np.int64),
        used=np.empty(room, np.int64),
    )
    found = np.empty(7, np.int64)
    cutoff_ms = call_for_ms("expand", costs, limits, arcs, completions, labels, found)
    label, last, kind, replicas, complete, stopped, number = found.tolist()
    by_windows = stopped > 0 and not limits.strict
    return Outcome(
        plan=_read_plan(labels, label, (0, last, kind, replicas)),
        time_ms=cutoff_ms,
        is_complete=bool(complete) and not by_windows,
        was_stopped=bool(complete) and by_windows,
        num_labels=number,
    )


def _read_plan(labels: Labels, label: int, first_stage: tuple[int, int, int, int]) -> IntArray:
    """Return the stages of a plan, the first stage, then those of a label; none if the label is -1."""
    rows = [] if label < 0 else [first_stage]
    while label >= 0 and labels.parent[label] >= 0:
        behind = int(labels.parent[label])
        cuts = int(labels.cut[label]), int(labels.cut[behind])
        rows.append((*cuts, int(labels.kind[label]), int(labels.replicas[label])))
        label = behind
    return np.array(rows, dtype=np.int64).reshape(-1, 4)
