"""The places where a graph may be cut: all of them where they are few, else those of one order of layers.

A cut is a set of layers that holds every layer that one of its own takes a value from. A stage is what lies
between two nested cuts. Parallel branches have very many cuts; then the graph is contracted to a chain: the
cuts are the prefixes of one topological order. Every cut that all orders share (between series of blocks) is
among them, and the bytes that cross each cut are those of the branching graph. Plans over the chain are
plans for the graph; only a bound on all plans of the graph must come from elsewhere.

A value crosses a cut once however many layers behind it take it. (PipeDream's own planner counts, for a cut
through several branches, also values that are used up before it.)

Source: the sets are the states of Narayanan et al., "PipeDream", SOSP 2019; the name ideal is that of
Tarnawski et al., NeurIPS 2020.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stagewright.optimizer.ideals import TooManyIdealsError, ideals, membership

from .topology import BoolArray, FloatArray, IntArray, Topology


@dataclass(frozen=True)
class Cuts:
    """Cuts 0 (no layer before it) to n (every layer), small ones first; n + 1 of them."""

    topology: Topology
    sizes: IntArray
    """(n + 1,) how many layers are before each cut."""
    crossing_bytes: FloatArray
    """(n + 1,) bytes of the values made before and used behind each cut; 0 at both ends."""
    inside: BoolArray | None
    """(n + 1, L) which layers are before each cut; None: the first sizes[k] layers of the order."""
    complete: bool
    """Whether these are all cuts of the graph."""

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def is_chain(self) -> bool:
        """Whether each cut lies within the next one."""
        return self.inside is None

    def sums(self, values: FloatArray) -> FloatArray:
        """Return (n + 1,) sums of (L,) values over the layers before each cut."""
        if self.inside is not None:
            return np.asarray(self.inside @ values, dtype=np.float64)
        return np.concatenate([[0.0], np.cumsum(values)])[self.sizes]

    @cached_property
    def nested(self) -> BoolArray:
        """(n + 1, n + 1) whether cut p lies within cut q and is smaller: (p, q) can be a stage."""
        smaller: BoolArray = self.sizes[:, None] < self.sizes[None, :]
        if self.inside is None:
            return smaller
        table = self.inside.astype(np.float32)
        within: BoolArray = table @ table.T == self.sizes[:, None]
        return smaller & within

    def layers(self, first: int, last: int) -> tuple[int, ...]:
        """Return the layers between two nested cuts, in order."""
        if self.inside is None:
            return tuple(range(self.sizes[first], self.sizes[last]))
        return tuple(int(i) for i in np.flatnonzero(self.inside[last] & ~self.inside[first]))

    def kept(self, indices: IntArray) -> "Cuts":
        """Return some of the cuts."""
        return Cuts(
            self.topology,
            self.sizes[indices],
            self.crossing_bytes[indices],
            None if self.inside is None else self.inside[indices],
            complete=self.complete and len(indices) == len(self),
        )


def cuts_of(topology: Topology, most: int) -> Cuts:
    """Return every cut if there are at most `most`, else those of the topology's order, a chain."""
    if topology.is_chain:
        return chain_cuts(topology)
    return every_cut(topology, most) or chain_cuts(topology)


def chain_cuts(topology: Topology) -> Cuts:
    """Return the prefixes of the topology's order. Takes O(L + edges) time."""
    size = len(topology.nodes)
    change = np.zeros(size + 2)
    for layer, targets in enumerate(topology.targets):
        if targets:
            change[layer + 1] += topology.output_bytes[layer]
            change[targets[-1] + 1] -= topology.output_bytes[layer]
    crossing = np.maximum(np.cumsum(change)[: size + 1], 0.0)
    crossing[size] = 0.0
    return Cuts(topology, np.arange(size + 1), crossing, None, complete=topology.is_chain)


def every_cut(topology: Topology, most: int) -> Cuts | None:
    """Return every cut of the graph, or None as soon as there are more than `most` beside the empty one."""
    size = len(topology.nodes)
    edges = ((s, layer) for layer, sources in enumerate(topology.sources) for s in sources)
    try:
        masks = ideals(size, edges, most + 1)
    except TooManyIdealsError:
        return None
    inside = membership(masks, size)
    sizes = inside.sum(axis=1)
    crosses = np.zeros_like(inside)
    for layer, targets in enumerate(topology.targets):
        for target in targets:
            crosses[:, layer] |= inside[:, layer] & ~inside[:, target]
    crossing = np.asarray(crosses @ topology.output_bytes, dtype=np.float64)
    return Cuts(topology, sizes, crossing, inside, complete=True)


def thinned(cuts: Cuts, most: int) -> Cuts:
    """Return at most `most` + 1 cuts of a chain, spread evenly over its compute time.

    Of the cuts in each slice of the time, the one with the fewest bytes crossing stays, and of equals the
    first.
    """
    if len(cuts) <= most + 1:
        return cuts
    assert cuts.is_chain and most >= 2
    topology = cuts.topology
    compute_s = cuts.sums(topology.forward_s + topology.backward_s)
    total_s = compute_s[-1] or 1.0
    inner = np.arange(1, len(cuts) - 1)
    slices = np.minimum((compute_s[inner] / total_s * (most - 1)).astype(int), most - 2)
    order = np.lexsort((inner, cuts.crossing_bytes[inner], slices))
    firsts = np.unique(slices[order], return_index=True)[1]
    return cuts.kept(np.array([0, *sorted(inner[order][firsts]), len(cuts) - 1]))
