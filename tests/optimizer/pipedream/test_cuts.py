"""Cuts of graphs: all of them, those of one order, and what crosses them."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.optimizer.pipedream.cuts import Cuts, chain_cuts, cuts_of, every_cut, thinned
from stagewright.optimizer.pipedream.topology import Topology, topology_of
from stagewright.pipedream_graph import TextGraph, TextNode

MakeGraph = Callable[[int, int], TextGraph]


def closed_sets(topology: Topology) -> list[frozenset[int]]:
    """Return every set of layers that holds the sources of its own, by trying all sets."""
    size = len(topology.nodes)
    sets = itertools.chain.from_iterable(
        itertools.combinations(range(size), k) for k in range(size + 1)
    )
    return [frozenset(s) for s in sets if all(set(topology.sources[v]) <= set(s) for v in s)]


def crossing(topology: Topology, before: frozenset[int]) -> float:
    return sum(
        float(topology.output_bytes[v])
        for v in before
        if any(t not in before for t in topology.targets[v])
    )


def sets_of(cuts: Cuts) -> list[frozenset[int]]:
    return [frozenset(cuts.layers(0, k)) for k in range(len(cuts))]


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_every_cut_is_found_once_with_what_crosses_it(
    random_branching: MakeGraph, seed: int, size: int
) -> None:
    topology = topology_of(random_branching(seed, size))
    cuts = every_cut(topology, 10_000)
    assert cuts is not None
    found = sets_of(cuts)
    assert sorted(found, key=sorted) == sorted(closed_sets(topology), key=sorted)
    assert cuts.crossing_bytes.tolist() == [crossing(topology, s) for s in found]
    nested = [[a < b for b in found] for a in found]
    assert cuts.nested.tolist() == nested


@given(st.integers(0, 10_000), st.integers(1, 12))
def test_cuts_of_the_order_are_prefixes_with_what_crosses_them(
    random_branching: MakeGraph, seed: int, size: int
) -> None:
    topology = topology_of(random_branching(seed, size))
    cuts = chain_cuts(topology)
    found = sets_of(cuts)
    assert found == [frozenset(range(k)) for k in range(size + 1)]
    assert cuts.crossing_bytes.tolist() == [crossing(topology, s) for s in found]
    assert cuts.sums(topology.forward_s)[-1] == pytest.approx(topology.forward_s.sum())


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_the_order_passes_every_cut_that_is_comparable_with_all_others(
    random_branching: MakeGraph, seed: int, size: int
) -> None:
    topology = topology_of(random_branching(seed, size))
    every = closed_sets(topology)
    shared = [s for s in every if all(s <= other or other <= s for other in every)]
    assert set(shared) <= set(sets_of(chain_cuts(topology)))


def test_values_used_up_before_a_cut_do_not_cross_it(text_node: Callable[..., TextNode]) -> None:
    nodes = tuple(text_node(name, 1, 1, 100) for name in ("s", "p", "a", "b", "c"))
    edges = (("s", "p"), ("p", "a"), ("p", "b"), ("a", "c"), ("b", "c"))
    cuts = every_cut(topology_of(TextGraph(nodes=nodes, edges=edges)), 100)
    assert cuts is not None
    behind_both = sets_of(cuts).index(frozenset({0, 1, 2, 3}))
    assert cuts.crossing_bytes[behind_both] == 200.0  # a and b; p is used up


def test_too_many_cuts_are_given_up_for_those_of_a_chain(
    text_node: Callable[..., TextNode],
) -> None:
    nodes = tuple(text_node(f"n{i}", 1, 1, 1) for i in range(42))
    edges = [("n0", f"n{i}") for i in range(1, 41)] + [(f"n{i}", "n41") for i in range(1, 41)]
    topology = topology_of(TextGraph(nodes=nodes, edges=tuple(edges)))
    assert every_cut(topology, 1000) is None
    cuts = cuts_of(topology, 1000)
    assert cuts.is_chain and not cuts.complete and len(cuts) == 43


def test_a_chain_of_ten_thousand_layers_is_cut_without_recursion(
    random_chain: MakeGraph,
) -> None:
    cuts = cuts_of(topology_of(random_chain(0, 10_000)), 100)
    assert cuts.complete and len(cuts) == 10_001
    few = thinned(cuts, 100)
    assert not few.complete and len(few) <= 101
    assert few.sizes[0] == 0 and few.sizes[-1] == 10_000
    assert np.all(np.diff(few.sizes) > 0)
