"""Solver `exact` for equal devices (optimizer/solvers/replicated_stages.py) against every plan."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.optimizer.pipedream.cuts import Cuts, chain_cuts, every_cut
from stagewright.optimizer.pipedream.problem import Level, LevelsProblem
from stagewright.optimizer.pipedream.topology import topology_of
from stagewright.optimizer.solvers import pipedream, replicated_stages
from stagewright.pipedream_graph import TextGraph

MakeGraph = Callable[[int, int], TextGraph]


def every_plan(
    cuts: Cuts, num_devices: int, cut: int = 0, start: int = 0
) -> Iterator[list[tuple[int, ...]]]:
    """Yield all lists of (first cut, last cut, first device, replicas), idle devices anywhere."""
    if cut == len(cuts) - 1:
        yield []
        return
    for begin in range(start, num_devices):
        for replicas in range(1, num_devices - begin + 1):
            for last in range(cut + 1, len(cuts)):
                if cuts.nested[cut, last]:
                    for rest in every_plan(cuts, num_devices, last, begin + replicas):
                        yield [(cut, last, begin, replicas), *rest]


def bandwidth(problem: LevelsProblem, low: int, high: int) -> float:
    size = 1
    for level in problem.levels:
        size *= level.num_members
        if low // size == high // size:
            return level.bandwidth_bytes_per_s
    raise AssertionError


def value(problem: LevelsProblem, plan: Sequence[tuple[int, ...]]) -> float:
    """Return the objective of one plan, from the formula in the documentation."""
    worst, factor = 0.0, problem.reduce_factor
    for p, q, start, m in plan:
        end = start + m
        seconds = problem.compute_s[q] - problem.compute_s[p]
        held = problem.parameter_bytes[q] - problem.parameter_bytes[p]
        kept = problem.kept_bytes[q] - problem.kept_bytes[p]
        behind = plan[-1][2] + plan[-1][3] - end
        if problem.memory_bytes and math.ceil(behind / m) * kept > problem.memory_bytes:
            return math.inf
        if problem.straight and m > 1:
            return math.inf
        rate = bandwidth(problem, start, end - 1) * m
        worst = max(worst, (seconds + factor * (m - 1) * held / rate) / m)
        if problem.compression is None or p == 0:
            continue
        if start > 0:
            rate = bandwidth(problem, start - 1, end - 1) * m * problem.compression
            worst = max(worst, 2 * problem.cuts.crossing_bytes[p] / rate)
        if q < len(problem.cuts) - 1 and end < problem.num_devices:
            rate = bandwidth(problem, start, end) * m * problem.compression
            worst = max(worst, 2 * problem.cuts.crossing_bytes[q] / rate)
    return worst


@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 5),
    members=st.sampled_from([(1,), (2,), (4,), (2, 2), (3, 1), (2, 1, 2)]),
    ratio=st.sampled_from([None, 1.0]),
    factor=st.sampled_from([2.0, 4.0]),
    straight=st.booleans(),
    memory=st.sampled_from([None, 60e6, 200e6]),
    branching=st.booleans(),
)
def test_no_plan_is_better_than_the_solvers(
    random_chain: MakeGraph,
    random_branching: MakeGraph,
    seed: int,
    size: int,
    members: tuple[int, ...],
    ratio: float | None,
    factor: float,
    straight: bool,
    memory: float | None,
    branching: bool,
) -> None:
    topology = topology_of((random_branching if branching else random_chain)(seed, size))
    cuts = every_cut(topology, 1000) if branching else chain_cuts(topology)
    assert cuts is not None
    problem = LevelsProblem(
        cuts=cuts,
        levels=tuple(Level(n, 1e9 / 4**i) for i, n in enumerate(members)),
        reduce_factor=factor,
        compression=ratio,
        straight=straight,
        memory_bytes=memory,
    )
    best = min(value(problem, plan) for plan in every_plan(cuts, problem.num_devices))
    found = replicated_stages.solve(problem)
    if found is None:
        assert best == math.inf
        return
    assert found.value_s == pytest.approx(best, rel=1e-9, abs=1e-15)
    plan = [(s.first, s.last, s.ranks[0], len(s.ranks)) for s in found.stages]
    assert value(problem, plan) == pytest.approx(best, rel=1e-9, abs=1e-15)
    assert problem.lower_bound_s <= best * (1 + 1e-9)


@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(1, 8))
def test_on_one_level_it_is_never_worse_than_pipedreams_programme(
    random_chain: MakeGraph, seed: int, size: int, num_devices: int
) -> None:
    problem = LevelsProblem(
        cuts=chain_cuts(topology_of(random_chain(seed, size))),
        levels=(Level(num_devices, 1e9),),
        compression=1.0,
    )
    exact, published = replicated_stages.solve(problem), pipedream.solve(problem)
    assert exact is not None and published is not None
    assert exact.value_s <= published.value_s * (1 + 1e-9)


def test_chain_and_table_searches_agree_on_the_same_cuts(random_chain: MakeGraph) -> None:
    topology = topology_of(random_chain(3, 40))
    whole = every_cut(topology, 1000)
    assert whole is not None
    values = []
    for cuts in (chain_cuts(topology), whole):
        problem = LevelsProblem(cuts=cuts, levels=(Level(4, 1e9), Level(2, 1e8)), compression=1.0)
        found = replicated_stages.solve(problem)
        assert found is not None
        values.append(found.value_s)
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_ten_thousand_layers_are_planned_without_recursion(random_chain: MakeGraph) -> None:
    cuts = chain_cuts(topology_of(random_chain(0, 10_000)))
    problem = LevelsProblem(cuts=cuts, levels=(Level(4, 1e12),))
    found = replicated_stages.solve(problem)
    assert found is not None and found.bound_s == found.value_s
    assert found.value_s == pytest.approx(problem.lower_bound_s, rel=1e-2)


def test_fifteen_of_four_servers_of_four_beside_one_can_be_expressed(
    text_node: Callable[..., object],
) -> None:
    nodes = (text_node("conv", 5, 10, 1e3, 1e3), text_node("dense", 0.5, 0.5, 1e3, 4e9))
    graph = TextGraph(nodes=nodes, edges=(("conv", "dense"),))  # type: ignore[arg-type]
    problem = LevelsProblem(
        cuts=chain_cuts(topology_of(graph)), levels=(Level(4, 1e10), Level(4, 1e9)), compression=1.0
    )
    found = replicated_stages.solve(problem)
    assert found is not None
    assert [len(stage.ranks) for stage in found.stages] == [15, 1]
    assert list(itertools.chain.from_iterable(s.ranks for s in found.stages)) == list(range(16))
