"""Cuts are judged by looking at every set of layers; thinned ones by what must stay."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.optimizer.branching import cuts as module
from stagewright.optimizer.branching.cuts import (
    close_to,
    cuts_in_order,
    cuts_of_orders,
    every_cut,
    thinned,
)
from stagewright.optimizer.branching.units import Units
from stagewright.optimizer.load import Inputs
from stagewright.optimizer.problem import Problem


def ladder(num_rungs: int) -> Units:
    """Pairs of parallel branches of two layers each, one behind the other."""
    sources: list[tuple[int, ...]] = [()]
    for _ in range(num_rungs):
        start = len(sources) - 1
        sources += [(start,), (start + 1,), (start,), (start + 3,), (start + 2, start + 4)]
    size = len(sources)
    return Units(tuple((i,) for i in range(size)), tuple(sources), (1.0,) * size)


@given(st.integers(1, 4))
def test_every_cut_of_a_ladder_is_found(num_rungs: int) -> None:
    units = ladder(num_rungs)
    cuts = every_cut(units, len(units.layers))
    # Three by three ways to be within two branches, and behind their join, per rung.
    assert cuts is not None and len(cuts) == 2 + 9 * num_rungs and cuts.is_complete
    assert cuts.inside is not None
    for row in cuts.inside:
        assert all(not row[t] or row[list(found)].all() for t, found in enumerate(units.sources))
    assert all(cuts.nested[a, b] for a, b in zip(cuts.spine, cuts.spine[1:], strict=False))
    assert cuts.spine[0] == 0 and cuts.spine[-1] == len(cuts) - 1


def test_prefixes_of_orders_are_cuts_and_pass_what_all_orders_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_THIN", 60)
    units = ladder(20)
    size = len(units.layers)
    cuts = cuts_of_orders(units, np.ones(size), size)
    assert cuts.inside is not None and not cuts.is_complete and cuts.is_thin
    for row in cuts.inside:
        assert all(not row[t] or row[list(found)].all() for t, found in enumerate(units.sources))
    # Behind each join one value crosses: the cheapest place of its slice of time.
    joins = {tuple(range(end)) for end in range(1, size, 5)}
    assert joins <= {cuts.held(0, last) for last in range(len(cuts))}


def test_prefixes_close_to_a_plan_s_cuts_stay() -> None:
    stages = [0] * 700 + [1] * 300
    kept = close_to(stages)
    assert kept == tuple(range(550, 851))
    places = thinned(np.ones(1001), np.ones(1000), kept, 100)
    assert set(kept) <= set(places) and places[0] == 0 and places[-1] == 1000


def test_a_chain_of_ten_thousand_layers_is_thinned() -> None:
    crossing = np.ones(10_001)
    crossing[5000] = 0.5
    cuts = cuts_in_order(crossing, np.ones(10_000), [77], branches=False)
    assert len(cuts) <= module.MOST_THIN + 2 and cuts.is_thin and not cuts.is_complete
    assert {77, 5000} <= set(cuts.sizes.tolist())
    assert cuts.held(0, cuts.behind(77)) == tuple(range(77))


@pytest.mark.parametrize("seed", range(8))
def test_cuts_of_a_model_are_those_of_every_subset_but_for_free_layers(
    branching_inputs: Callable[..., Inputs],
    with_every_subset: Callable[[Problem], Problem],
    seed: int,
) -> None:
    inputs = branching_inputs(seed, 6, [[("fast", 2)]], 10**9)
    problem = Problem(inputs=inputs, microbatch_size=2, num_microbatches=4, cutting="every")
    subsets = with_every_subset(problem).cuts
    found = {problem.cuts.held(0, last) for last in range(len(problem.cuts))}
    assert found <= {subsets.held(0, last) for last in range(len(subsets))}
