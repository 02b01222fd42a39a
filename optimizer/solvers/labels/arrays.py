"""The arrays that Python and the compiled loops share (kernels/library.py)."""

from typing import NamedTuple

from stagewright.optimizer.costs.cost import FloatArray, IntArray


class Costs(NamedTuple):
    """What the compiled loops read."""

    num_cuts: int
    """L: cuts are numbered 0 to L."""
    is_chain: bool
    """Each cut lies within the next one, so a stage that starts earlier takes longer."""
    num_microbatches: int
    is_step_time: bool
    is_latency: bool
    """Inference: the sum of times counts, and loads only have to keep the threshold."""
    waits: bool
    """Messages stop the receiving stage's computing (overlap "none")."""
    holds_all: bool
    """Every unit of the step is in flight (gpipe)."""
    is_flushless: bool
    """Units of several steps are in flight."""
    counts: IntArray
    """(K,) devices of each type."""
    type_of: IntArray
    """(V,) the device type of each kind of stage."""
    hourly: FloatArray
    """(K,) the price of a device; 0 where there is no budget."""
    budget: float
    """Per hour, for all devices of a plan; infinite: none."""
    most: IntArray
    """(V,) replicas that a stage may have."""
    compute_ms: FloatArray
    """(V, L + 1, L + 1) forward, once or twice, and backward."""
    end_ms: FloatArray
    """(V, L + 1, L + 1) update and the gradient sum of shared parameters."""
    own_bytes: FloatArray
    """(L + 1, L + 1) summed over the stage's replicas."""
    forward_ms: FloatArray
    """(2, L + 1, L + 1) messages to a stage: near, and across servers."""
    backward_ms: FloatArray
    near: IntArray
    """(V,) a stage of more replicas has its messages across servers."""
    fits: IntArray
    """(V, L + 1, L + 1) units in flight that fit into memory; 0 if not even the parameters do."""
    inside: IntArray
    """(V,) a stage of more replicas sums gradients across servers."""
    sum_latency_ms: FloatArray
    """(2, 2): inside a server and across, over up to two kinds of links."""
    sum_ms_per_byte: FloatArray
    replicas: IntArray
    """Rising; of all numbers of replicas with the same largest deal of micro-batches, the least."""
    replicas_for: IntArray
    """(M + 1,): index of the least number of replicas that are dealt at most so many micro-batches each."""

    @property
    def adds_times(self) -> bool:
        """Whether the objective has the sum of times."""
        return self.is_step_time or self.is_latency


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


class Fares(NamedTuple):
    """Prices put together: what an arc costs."""

    per_replica: FloatArray
    """(K,) by device type; negative if further replicas widen the window by more than they cost."""
    per_stage: float
    per_ms: float
    first_window: float
    """Price of the window times the threshold: the first stage's bonus is this over n."""


class Runs(NamedTuple):
    """r(s) of every arc: with s from begin[k] up to, not including, end[k] behind, replicas[k] fit."""

    first: IntArray
    """(A,): arc a has the runs first[a] up to, not including, stop[a]; arcs alike share theirs."""
    stop: IntArray
    begin: IntArray
    end: IntArray
    replicas: IntArray
    most_behind: IntArray
    """(L + 1,): with more replicas behind the cut too few are left for the layers before it."""


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


SHARED = (Costs, Arcs, Fares, Runs, Completions, Labels, Limits)
"""Every one has a C++ struct of the same fields."""
