"""The exact solver for several device types (optimizer/solvers/sparsepipe.py) against every plan."""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.document import InputError
from stagewright.optimizer.pipedream.cuts import chain_cuts
from stagewright.optimizer.pipedream.mixed_problem import DeviceClass, MixedProblem
from stagewright.optimizer.pipedream.topology import topology_of
from stagewright.optimizer.solvers import sparsepipe
from stagewright.pipedream_graph import TextGraph

MakeGraph = Callable[[int, int], TextGraph]
Groups = tuple[tuple[int, str, int], ...]
"""(server, device type, count)"""


def problem_of(
    graph: TextGraph, groups: Groups, seed: int, **options: float | None
) -> MixedProblem:
    topology = topology_of(graph)
    random = np.random.default_rng(seed)
    ranks = itertools.count()
    whole_s = topology.forward_s + topology.backward_s
    seconds = {kind: whole_s * random.uniform(1, 3, len(whole_s)) for _, kind, _ in groups}
    settings_of: dict[str, float | None] = {"inside_bytes_per_s": 1e9, "between_bytes_per_s": 2e8}
    return MixedProblem(
        cuts=chain_cuts(topology),
        classes=tuple(
            DeviceClass(server, kind, tuple(itertools.islice(ranks, count)))
            for server, kind, count in groups
        ),
        layer_s=seconds,
        **(settings_of | options),  # type: ignore[arg-type]
    )


def every_plan(
    problem: MixedProblem, free: tuple[int, ...], cut: int = 0
) -> Iterator[list[tuple[int, int, tuple[int, ...]]]]:
    """Yield all lists of (first cut, last cut, devices of each class)."""
    if cut == len(problem.cuts) - 1:
        yield []
        return
    for devices in itertools.product(*(range(count + 1) for count in free)):
        if not sum(devices) or (problem.straight and sum(devices) > 1):
            continue
        left = tuple(f - d for f, d in zip(free, devices, strict=True))
        for last in range(cut + 1, len(problem.cuts)):
            for rest in every_plan(problem, left, last):
                yield [(cut, last, devices), *rest]


def value(problem: MixedProblem, plan: list[tuple[int, int, tuple[int, ...]]]) -> float:
    """Return the objective of one plan, from the formula in the documentation."""
    worst, used, before = 0.0, 0, set[int]()
    for p, q, devices in plan:
        m = sum(devices)
        used += m
        own = [c for c, count in zip(problem.classes, devices, strict=True) if count]
        servers = {c.server for c in own}
        slowest = max((c.device_type for c in own), key=lambda t: problem.layer_s[t].sum())
        seconds = problem.layer_s[slowest][p:q].sum()
        held = problem.cuts.topology.parameter_bytes[p:q].sum()
        kept = held + problem.cuts.topology.output_bytes[p:q].sum()
        behind = sum(sum(counts) for _, _, counts in plan) - used
        if problem.memory_bytes and math.ceil(behind / m) * kept > problem.memory_bytes:
            return math.inf
        inside, between = problem.inside_bytes_per_s, problem.between_bytes_per_s
        rate = inside if len(servers) == 1 else between
        worst = max(worst, (seconds + problem.reduce_factor * (m - 1) * held / (rate * m)) / m)
        if problem.compression and p:
            rate = inside if len(servers | before) == 1 else between
            worst = max(worst, 2 * problem.cuts.crossing_bytes[p] / rate / problem.compression)
        before = servers
    return float(worst)


GROUPS: tuple[Groups, ...] = (
    ((0, "a", 1),),
    ((0, "a", 3),),
    ((0, "a", 1), (0, "b", 2)),
    ((0, "a", 1), (0, "b", 1), (0, "c", 1)),
    ((0, "a", 2), (1, "a", 1)),
    ((0, "a", 1), (1, "b", 1), (0, "b", 1)),
    ((0, "a", 1), (1, "b", 1), (2, "a", 1)),
)


@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 5),
    groups=st.sampled_from(GROUPS),
    ratio=st.sampled_from([None, 1.0, 3.0]),
    factor=st.sampled_from([2.0, 4.0]),
    straight=st.booleans(),
    memory=st.sampled_from([None, 60e6, 200e6]),
)
def test_no_plan_is_better_than_the_solvers(
    random_chain: MakeGraph,
    seed: int,
    size: int,
    groups: Groups,
    ratio: float | None,
    factor: float,
    straight: bool,
    memory: float | None,
) -> None:
    problem = problem_of(
        random_chain(seed, size),
        groups,
        seed,
        compression=ratio,
        reduce_factor=factor,
        straight=straight,
        memory_bytes=memory,
    )
    plans = every_plan(problem, tuple(len(c.ranks) for c in problem.classes))
    best = min(value(problem, plan) for plan in plans)
    found = sparsepipe.solve(problem)
    if found is None:
        assert best == math.inf
        return
    assert found.value_s == pytest.approx(best, rel=1e-9, abs=1e-15)
    plan = [
        (s.first, s.last, tuple(len(set(c.ranks) & set(s.ranks)) for c in problem.classes))
        for s in found.stages
    ]
    assert value(problem, plan) == pytest.approx(best, rel=1e-9, abs=1e-15)
    assert problem.lower_bound_s <= best * (1 + 1e-9)


def test_too_many_kinds_of_devices_are_refused(random_chain: MakeGraph) -> None:
    groups = tuple((0, kind, 100) for kind in "abcd")
    with pytest.raises(InputError, match="plan for fewer devices"):
        sparsepipe.solve(problem_of(random_chain(0, 4), groups, 0))


@pytest.mark.parametrize(
    ("servers", "inside", "between", "theirs_s"),
    [
        ((("TitanV", 1), ("TitanXP", 3)), 1e8, 1e8, 0.381618),
        ((("TitanXP", 3), ("TitanV", 1)), 1e8, 1e8, 0.381618),
        ((("RTX", 2),), 1e8, 1e8, 0.458293),
        ((("RTX", 2),), 1e9, 1e9, 0.3599),
        ((("RTX", 4),), 1e9, 1e9, 0.194789),
    ],
)
def test_published_profiles_are_planned_at_least_as_well_as_published(
    shared_data: Callable[[str], Path],
    servers: tuple[tuple[str, int], ...],
    inside: float,
    between: float,
    theirs_s: float,
) -> None:
    ranks = itertools.count()
    topologies = {
        kind: topology_of(TextGraph.load(shared_data(f"sparsepipe/minkvgg_b64_{kind}.graph.txt")))
        for kind, _ in servers
    }
    problem = MixedProblem(
        cuts=chain_cuts(topologies[servers[0][0]]),
        classes=tuple(
            DeviceClass(0, kind, tuple(itertools.islice(ranks, count))) for kind, count in servers
        ),
        layer_s={kind: t.forward_s + t.backward_s for kind, t in topologies.items()},
        inside_bytes_per_s=inside,
        between_bytes_per_s=between,
        compression=1.0,
    )
    found = sparsepipe.solve(problem)
    assert found is not None
    assert found.value_s <= theirs_s + 5e-7
