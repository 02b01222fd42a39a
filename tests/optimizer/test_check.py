"""The checker accepts what the solver certifies, and nothing above it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from stagewright.certificate import Certificate
from stagewright.cli import main
from stagewright.document import InputError
from stagewright.flushless import FLUSHLESS
from stagewright.optimizer.check import check_certificate
from stagewright.optimizer.constraints import Constraints
from stagewright.optimizer.costs.cost import Objective
from stagewright.optimizer.flushless import constraints_of
from stagewright.optimizer.load import Inputs
from stagewright.optimizer.planning import Request, optimize
from stagewright.optimizer.problem import Problem
from stagewright.optimizer.solvers import exact
from stagewright.optimizer.solvers.labels.solve import solve
from stagewright.plan import Plan
from stagewright.scheduling import FORWARD_ONLY

RandomInputs = Callable[..., Inputs]
PATH = Path("plan.json")
CLUSTERS = (
    [[("fast", 1), ("slow", 2)]],
    [[("fast", 2)], [("slow", 2)]],
    [[("fast", 3)], [("slow", 4)]],
)


KINDS = ("step-time", "throughput", "latency", *FLUSHLESS)


def problem_of(random_inputs: RandomInputs, seed: int, kind: str) -> Problem:
    """Return a problem of any kind that has certificates."""
    memory_bytes = (10**9, 6000, 10**9, 12000)[seed % 4]
    inputs = random_inputs(seed, 5, CLUSTERS[seed % 3], memory_bytes)
    types = {
        kind: device.replace(price_per_hour=2.0 if kind == "fast" else 0.7)
        for kind, device in inputs.cluster.device_types.items()
    }
    inputs = replace(inputs, cluster=inputs.cluster.replace(device_types=types))
    objectives: dict[str, Objective] = {"step-time": "step-time", "latency": "latency"}
    schedule = "gpipe" if seed % 5 == 0 else "1f1b"
    if kind not in ("step-time", "throughput"):
        schedule = FORWARD_ONLY if kind == "latency" else kind
    limits = Constraints(
        allow_recompute=seed % 4 == 1 and kind != "latency",
        budget_per_hour=6.5 if seed % 3 == 2 else None,
        period_ms=9.0 if seed % 2 and kind == "latency" else None,
    )
    return Problem(
        inputs=inputs,
        microbatch_size=2,
        num_microbatches=4 + seed % 9,
        objective=objectives.get(kind, "throughput"),
        schedule=schedule,
        overlap="none" if seed % 3 == 0 else "full",
        max_stages=2 if seed % 7 == 0 else None,
        constraints=constraints_of(schedule, limits, inputs.model),
    )


def certified(
    random_inputs: RandomInputs, seed: int, kind: str
) -> tuple[Inputs, Certificate, float] | None:
    """Return inputs, the solver's certificate for them, and the value of the best plan that it found."""
    problem = problem_of(random_inputs, seed, kind)
    found = solve(problem, 1.0)
    if found is None:
        return None
    assert found.certificate is not None
    return problem.inputs, found.certificate, found.value_ms


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(10))
def test_certificates_are_confirmed_and_claims_above_them_are_not(
    random_inputs: RandomInputs, seed: int, kind: str
) -> None:
    made = certified(random_inputs, seed, kind)
    if made is None:
        return
    inputs, certificate, value_ms = made
    assert 0 < certificate.bound_ms <= value_ms
    proven_ms = check_certificate(certificate, inputs, PATH)
    assert proven_ms == pytest.approx(certificate.bound_ms)
    with pytest.raises(InputError, match="do not trust it"):
        check_certificate(certificate.replace(bound_ms=value_ms * 1.001), inputs, PATH)
    raised = tuple(
        interval.replace(up_to_ms=None if interval.up_to_ms is None else interval.up_to_ms * 3)
        for interval in certificate.intervals
    )
    if kind not in ("step-time", "latency"):
        falsified = certificate.replace(intervals=raised, bound_ms=certificate.bound_ms * 3)
        with pytest.raises(InputError, match="do not trust it"):
            check_certificate(falsified, inputs, PATH)
    for forged in (certificate.intervals[1:], ()):
        with pytest.raises(InputError, match="do not trust it"):
            check_certificate(
                certificate.replace(intervals=forged, bound_ms=value_ms * 1.001), inputs, PATH
            )


def test_prices_that_are_no_prices_prove_nothing(random_inputs: RandomInputs) -> None:
    made = certified(random_inputs, 1, "throughput")
    assert made is not None
    inputs, certificate, _ = made
    for price in (-1.0, float("inf"), float("nan")):
        interval = certificate.intervals[0]
        wrong = interval.replace(per_device=dict.fromkeys(interval.per_device, price))
        with pytest.raises(InputError, match="do not trust it"):
            check_certificate(certificate.replace(intervals=(wrong,)), inputs, PATH)


def test_the_command_confirms_a_plan_and_refuses_a_falsified_one(
    random_inputs: RandomInputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = random_inputs(3, 5, [[("fast", 1), ("slow", 2)]], 10**9)
    for kind, graph in inputs.graphs.items():
        graph.save(tmp_path / f"{kind}.json")
    inputs.cluster.save(tmp_path / "cluster.json")
    on_disk = Inputs(
        cluster=inputs.cluster,
        cluster_path=tmp_path / "cluster.json",
        graphs=inputs.graphs,
        graph_paths={kind: tmp_path / f"{kind}.json" for kind in inputs.graphs},
    )
    path = tmp_path / "plan.json"
    plan = optimize(on_disk, Request(batch_size=8, solver="labels", time_limit_s=2.0), path).plan
    plan.save(path)
    assert Plan.load(path) == plan
    assert main(["check", str(path)]) == 0
    assert "recomputed, no plan is below" in capsys.readouterr().out
    claims = tuple(c.replace(bound_ms=plan.proof.value * 9) for c in plan.proof.certificates)
    proof = plan.proof.replace(certificates=claims)
    plan.replace(proof=proof).save(path)
    assert main(["check", str(path)]) == 2
    assert "do not trust it, plan again" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_the_exact_solver_s_thresholds_prove_its_value_and_nothing_above_it(
    random_inputs: RandomInputs, seed: int, kind: str
) -> None:
    problem = problem_of(random_inputs, seed, kind)
    found = exact.solve(problem)
    if found is None:
        return
    certificate = found.certificate
    assert certificate is not None and certificate.is_over_sets and certificate.mixes_types
    assert certificate.bound_ms == pytest.approx(found.value_ms, rel=1e-8)
    assert check_certificate(certificate, problem.inputs, PATH) == certificate.bound_ms
    claim = found.value_ms * (1 + 1e-6)
    raised = tuple(
        interval.replace(up_to_ms=None if interval.up_to_ms is None else interval.up_to_ms * 1.001)
        for interval in certificate.intervals
    )
    for intervals in (certificate.intervals, certificate.intervals[1:], raised, ()):
        with pytest.raises(InputError, match="do not trust it"):
            check_certificate(
                certificate.replace(bound_ms=claim, intervals=intervals), problem.inputs, PATH
            )
