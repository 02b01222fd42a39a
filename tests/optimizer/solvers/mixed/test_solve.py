"""Stages of several types at scale against the exact programme, and covers against every way to cover."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from stagewright.cli import main
from stagewright.document import InputError
from stagewright.optimizer.assemble import draft
from stagewright.optimizer.check import check_certificate
from stagewright.optimizer.constraints import Constraints
from stagewright.optimizer.costs.evaluate import score
from stagewright.optimizer.costs.tables import StageTables
from stagewright.optimizer.load import Inputs
from stagewright.optimizer.planning import Request, optimize
from stagewright.optimizer.problem import Problem
from stagewright.optimizer.solvers import choose, exact
from stagewright.optimizer.solvers.choose import solve_by_labels
from stagewright.optimizer.solvers.mixed.cover import cheapest_covers
from stagewright.optimizer.solvers.mixed.solve import may_mix, with_mixed_stages
from stagewright.optimizer.solvers.solution import Solution

PATH = Path("plan.json")
RandomInputs = Callable[..., Inputs]
Objective = Literal["step-time", "throughput"]

CLUSTERS = (
    [[("fast", 2), ("slow", 3)]],
    [[("fast", 3)], [("slow", 3)]],
    [[("fast", 1), ("slow", 2)], [("slow", 2)]],
    [[("fast", 1), ("slow", 2), ("old", 2)]],
)
PRICES = {"fast": 2.0, "slow": 0.7, "old": 0.4}


def problem_of(random_inputs: RandomInputs, seed: int, objective: Objective) -> Problem:
    """Return a problem of any kind that stages of several types are searched for."""
    memory_bytes = (10**9, 6000, 10**9, 2500, 12000)[seed % 5]
    inputs = random_inputs(seed, 5, CLUSTERS[seed % 4], memory_bytes)
    types = {
        kind: device.replace(price_per_hour=PRICES[kind])
        for kind, device in inputs.cluster.device_types.items()
    }
    return Problem(
        inputs=replace(inputs, cluster=inputs.cluster.replace(device_types=types)),
        microbatch_size=2,
        num_microbatches=3 + seed % 9,
        objective=objective,
        schedule="gpipe" if seed % 5 == 0 else "1f1b",
        overlap="none" if seed % 3 == 0 else "full",
        max_stages=2 if seed % 6 == 0 else None,
        constraints=Constraints(
            allow_recompute=seed % 4 == 1, budget_per_hour=5.0 if seed % 7 == 3 else None
        ),
    )


def on_disk(made: Inputs, folder: Path) -> Inputs:
    for kind, graph in made.graphs.items():
        graph.save(folder / f"{kind}.json")
    made.cluster.save(folder / "cluster.json")
    paths = {kind: folder / f"{kind}.json" for kind in made.graphs}
    return replace(made, cluster_path=folder / "cluster.json", graph_paths=paths)


@pytest.mark.parametrize("objective", ["step-time", "throughput"])
@pytest.mark.parametrize("seed", range(20))
def test_the_best_plan_is_between_the_bound_and_the_plan_found(
    random_inputs: RandomInputs, seed: int, objective: Objective
) -> None:
    problem = problem_of(random_inputs, seed, objective)
    one_type, best = solve_by_labels(problem, 0.5), exact.solve(problem)
    if one_type is None:
        return
    assert best is not None and may_mix(problem)
    found = with_mixed_stages(problem, one_type, 2.0)
    assert found.mixed_bound_ms is not None
    assert found.mixed_bound_ms <= best.value_ms * (1 + 1e-9)
    assert best.value_ms <= found.value_ms * (1 + 1e-9)
    assert found.value_ms <= one_type.value_ms
    rescored = score(draft(StageTables(problem), found.stages), problem)
    assert rescored.value_ms == pytest.approx(found.value_ms, rel=1e-9)
    assert not rescored.overflows
    check(problem.inputs, found)


def check(inputs: Inputs, found: Solution) -> None:
    """Check that the certificate holds, and that claims above it are refused."""
    certificate = found.mixed_certificate
    if certificate is None:  # Time was up first.
        assert found.mixed_bound_ms == 0
        return
    assert found.mixed_bound_ms is not None and certificate.mixes_types
    assert certificate.bound_ms == pytest.approx(found.mixed_bound_ms)
    assert check_certificate(certificate, inputs, PATH) == pytest.approx(certificate.bound_ms)
    claim = found.value_ms * 1.001
    for intervals in (certificate.intervals, certificate.intervals[1:], ()):
        forged = certificate.replace(bound_ms=claim, intervals=intervals)
        with pytest.raises(InputError, match="do not trust it"):
            check_certificate(forged, inputs, PATH)
    raised = tuple(
        interval.replace(up_to_ms=None if interval.up_to_ms is None else interval.up_to_ms * 3)
        for interval in certificate.intervals
    )
    if certificate.objective == "throughput" and certificate.bound_ms:
        forged = certificate.replace(bound_ms=certificate.bound_ms * 3, intervals=raised)
        with pytest.raises(InputError, match="do not trust it"):
            check_certificate(forged, inputs, PATH)


@pytest.mark.parametrize("kinds", [1, 2, 3, 4])
def test_no_way_to_deal_all_micro_batches_is_cheaper_than_the_cheapest_cover(kinds: int) -> None:
    rng = np.random.default_rng(kinds)
    for _ in range(40):
        num = int(rng.integers(1, 20))
        dealt = rng.integers(0, num + 1, (1, kinds))
        must = int(rng.integers(kinds))
        dealt[0, must] = max(1, dealt[0, must])
        each = rng.choice([0.0, 0.3, 1.0, 2.2], kinds) * rng.uniform(0.5, 1.0, kinds)
        ranges = [range(-(-num // n) + 2) if n else range(1) for n in dealt[0].tolist()]
        covers = [r for r in itertools.product(*ranges) if r[must] and np.dot(r, dealt[0]) >= num]
        least = min(float(np.dot(r, each)) for r in covers)
        found, replicas = cheapest_covers(dealt, each, num, must, np.full(1, 1e9))
        assert found[0] == pytest.approx(least)
        assert tuple(replicas[0].tolist()) in covers
        assert float(replicas[0] @ each) == pytest.approx(least)
        limits = np.array([least * 0.999])
        assert cheapest_covers(dealt, each, num, must, limits)[0] == limits


def test_planning_says_what_is_known_of_stages_of_several_types(
    random_inputs: RandomInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "MOST_ENTRIES", 0)
    path, mixes = tmp_path / "plan.json", []
    for seed in (0, 7):
        inputs = on_disk(problem_of(random_inputs, seed, "step-time").inputs, tmp_path)
        request = Request(batch_size=8, microbatch_size=2, time_limit_s=10.0)
        plan = optimize(inputs, request, path).plan
        plan.save(path)
        assert main(["check", str(path)]) == 0
        several = any(len({r.device_type for r in s.replicas}) > 1 for s in plan.stages)
        assert several == (plan.proof.mixed_types is None), seed
        assert plan.proof.certificates[-1].mixes_types
        mixes.append(several)
    assert any(mixes)
