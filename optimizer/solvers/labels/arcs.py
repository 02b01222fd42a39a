"""The stages that are possible under a threshold, as arcs from a cut to a later cut.

Arcs are grouped by the cut at their end, ends falling: stages are chosen from the last layer, where the
replicas behind a stage, hence its units in flight and its memory, are known.
"""

import numpy as np
from numpy.typing import NDArray

from .arrays import Arcs, Costs
from .kernels.library import call

BoolArray = NDArray[np.bool_]


def find_arcs(costs: Costs, threshold_ms: float) -> Arcs:
    """Return every stage that some plan within a threshold may have.

    A stage's replicas are raised to what its memory needs with the least replicas behind it.
    """
    size = costs.num_cuts
    room = len(costs.type_of) * size * (size + 1) // 2
    arcs = Arcs(
        start=np.zeros(size + 2, np.int64),
        stop=np.zeros(size + 2, np.int64),
        tail=np.empty(room, np.int64),
        kind=np.empty(room, np.int64),
        step=np.empty(room, np.int64),
        replicas=np.empty(room, np.int64),
        time_ms=np.empty(room),
        fits=np.empty(room, np.int64),
        least_behind=np.empty(size + 1, np.int64),
    )
    return _chosen(arcs, slice(call("arcs_within", costs, threshold_ms, arcs)))


def keep_arcs(arcs: Arcs, keep: BoolArray) -> Arcs:
    """Return the arcs for which `keep` is true."""
    before = np.concatenate([[0], np.cumsum(keep)])
    return _chosen(arcs, keep)._replace(start=before[arcs.start], stop=before[arcs.stop])


def _chosen(arcs: Arcs, which: slice | BoolArray) -> Arcs:
    """Return copies of some arcs; `start` and `stop` stay."""
    return arcs._replace(
        tail=arcs.tail[which].copy(),
        kind=arcs.kind[which].copy(),
        step=arcs.step[which].copy(),
        replicas=arcs.replicas[which].copy(),
        time_ms=arcs.time_ms[which].copy(),
        fits=arcs.fits[which].copy(),
    )
