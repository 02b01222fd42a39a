"""Solver `pipedream` (optimizer/solvers/pipedream.py) against its recurrence, written out."""

import functools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.optimizer.pipedream.cuts import chain_cuts
from stagewright.optimizer.pipedream.problem import Level, LevelsProblem
from stagewright.optimizer.pipedream.topology import topology_of
from stagewright.optimizer.solvers import pipedream
from stagewright.pipedream_graph import TextGraph

MakeGraph = Callable[[int, int], TextGraph]


def by_recurrence(problem: LevelsProblem) -> float:
    """Return the objective as the published planner defines it, one cell at a time."""
    seconds, held = problem.compute_s, problem.parameter_bytes
    crossing, kept = problem.cuts.crossing_bytes, problem.kept_bytes
    end, factor, ratio = len(problem.cuts) - 1, problem.reduce_factor, problem.compression
    limit = problem.memory_bytes

    def fits(level: int, p: int, q: int, used: int, m: int) -> bool:
        behind = problem.levels[level].num_members - used
        return limit is None or math.ceil(behind / m) * float(kept[q] - kept[p]) <= limit

    def member(level: int, p: int, q: int) -> float:
        if level == 0:
            return float(seconds[q] - seconds[p])
        return best(level - 1, p, q, problem.levels[level - 1].num_members)

    @functools.cache
    def best(level: int, p: int, q: int, used: int) -> float:
        bandwidth = problem.levels[level].bandwidth_bytes_per_s
        below = problem.levels[level - 1].num_members if level else 1
        value = math.inf
        if fits(level, p, q, used, used) and not (problem.straight and used > 1):
            reduce_s = factor * (used - 1) * (held[q] - held[p]) / (bandwidth * used * below)
            value = (member(level, p, q) + reduce_s) / used
        for m in range(1, 2 if problem.straight else used):
            for k in range(p + 1, q) if m < used else ():
                if not fits(level, k, q, used, m):
                    continue
                reduce_s = factor * (m - 1) * (held[q] - held[k]) / (bandwidth * m)
                parts = [best(level, p, k, used - m), (member(level, k, q) + reduce_s) / m]
                if ratio is not None:
                    parts.append(2 * crossing[k] / (bandwidth * m) / ratio)
                    if q < end:
                        parts.append(2 * crossing[q] / (bandwidth * m) / ratio)
                value = min(value, max(parts))
        if problem.fewer_devices and used > 1:
            value = min(value, best(level, p, q, used - 1))
        return float(value)

    top = len(problem.levels) - 1
    return best(top, 0, end, problem.levels[top].num_members)


@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 7),
    members=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    ratio=st.sampled_from([None, 1.0, 2.0]),
    factor=st.sampled_from([2.0, 4.0]),
    straight=st.booleans(),
    fewer=st.booleans(),
    memory=st.sampled_from([None, 60e6, 200e6]),
)
def test_the_value_is_that_of_the_recurrence(
    random_chain: MakeGraph,
    seed: int,
    size: int,
    members: list[int],
    ratio: float | None,
    factor: float,
    straight: bool,
    fewer: bool,
    memory: float | None,
) -> None:
    levels = tuple(Level(n, 1e9 / (i + 1)) for i, n in enumerate(members))
    problem = LevelsProblem(
        cuts=chain_cuts(topology_of(random_chain(seed, size))),
        levels=levels,
        reduce_factor=factor,
        compression=ratio,
        straight=straight,
        fewer_devices=fewer,
        memory_bytes=memory,
    )
    found = pipedream.solve(problem)
    expected = by_recurrence(problem)
    if found is None:
        assert expected == math.inf
        return
    assert found.value_s == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert problem.lower_bound_s <= found.value_s * (1 + 1e-9)
    assert [stage.first for stage in found.stages[1:]] == [s.last for s in found.stages[:-1]]
    ranks = sorted(rank for stage in found.stages for rank in stage.ranks)
    assert len(set(ranks)) == len(ranks)
    if not fewer:
        assert ranks == list(range(problem.num_devices))
    if len(levels) == 1:
        assert max(s.stage_s for s in found.stages) == pytest.approx(found.value_s, abs=1e-15)


@pytest.mark.parametrize(
    ("profile", "num", "bandwidth", "factor", "ratio", "objective_s", "ends"),
    [
        ("pipedream/vgg16.graph.txt", 4, 1e9, 4.0, 1.0, 0.205521, [17, 40]),
        ("pipedream/vgg16.graph.txt", 4, 1e9, 4.0, None, 0.175733, [15, 40]),
        ("pipedream/vgg16.graph.txt", 4, 1e10, 4.0, 1.0, 0.170179, [15, 40]),
        ("sparsepipe/minkvgg_b64_RTX.graph.txt", 2, 1e8, 2.0, 1.0, 0.458293, [24, 52]),
        ("sparsepipe/minkvgg_b64_RTX.graph.txt", 4, 1e8, 2.0, 1.0, 0.236534, [14, 24, 52]),
        ("sparsepipe/minkvgg_b64_TitanV.graph.txt", 4, 1e8, 2.0, 1.0, 0.328908, [24, 52]),
    ],
)
def test_published_profiles_give_the_published_planners_values(
    shared_data: Callable[[str], Path],
    profile: str,
    num: int,
    bandwidth: float,
    factor: float,
    ratio: float | None,
    objective_s: float,
    ends: list[int],
) -> None:
    levels = (Level(num, bandwidth),)
    topology = topology_of(TextGraph.load(shared_data(profile)))
    found = pipedream.solve(
        LevelsProblem(
            cuts=pipedream.cuts_for(topology, levels),
            levels=levels,
            reduce_factor=factor,
            compression=ratio,
        )
    )
    assert found is not None
    assert found.value_s == pytest.approx(objective_s, abs=5e-7)
    assert found.bound_s == found.value_s
    if "minkvgg" in profile:
        assert [stage.last for stage in found.stages] == ends
