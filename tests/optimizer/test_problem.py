"""A matrix of links: every part of the planner takes the link of the servers that it is about."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from stagewright.cluster import PairLink
from stagewright.optimizer.assemble import draft, predict
from stagewright.optimizer.check import check_certificate
from stagewright.optimizer.costs.cost import Objective
from stagewright.optimizer.costs.evaluate import score
from stagewright.optimizer.costs.tables import StageTables
from stagewright.optimizer.load import Inputs
from stagewright.optimizer.problem import Problem, StageChoice
from stagewright.optimizer.solvers import brute_force, exact
from stagewright.optimizer.solvers.choose import solve_by_labels
from stagewright.optimizer.solvers.mixed.solve import with_mixed_stages

RandomInputs = Callable[..., Inputs]

CLUSTERS = (
    [[("fast", 1)], [("slow", 1)], [("slow", 1)]],
    [[("fast", 1)], [("slow", 2)]],
    [[("fast", 1), ("slow", 1)], [("slow", 1)], [("fast", 1)]],
)


def pair(first: str, second: str, bandwidth: float, latency_ms: float) -> PairLink:
    return PairLink(servers=(first, second), bandwidth_bytes_per_s=bandwidth, latency_ms=latency_ms)


def with_matrix(inputs: Inputs, *pairs: PairLink) -> Inputs:
    links = inputs.cluster.links.replace(matrix=pairs)
    return replace(inputs, cluster=inputs.cluster.replace(links=links))


@pytest.mark.parametrize("objective", ["step-time", "throughput"])
@pytest.mark.parametrize("seed", range(12))
def test_no_plan_is_better_than_the_exact_solver_s_on_a_matrix_of_links(
    random_inputs: RandomInputs, seed: int, objective: Objective
) -> None:
    inputs = random_inputs(seed, 3, CLUSTERS[seed % 3], 10**9)
    servers = [server.name for server in inputs.cluster.servers]
    matrix = [pair(servers[0], servers[1], 1e5 * (1 + seed), 0.1 * seed)]
    if len(servers) > 2:
        matrix.append(pair(servers[2], servers[0], 5e6, 0.01))
    problem = Problem(
        inputs=with_matrix(inputs, *matrix),
        microbatch_size=2,
        num_microbatches=4,
        objective=objective,
        overlap="none" if seed % 4 == 0 else "full",
    )
    best, found = brute_force.solve(problem), exact.solve(problem)
    assert best is not None and found is not None
    assert found.value_ms == pytest.approx(best.value_ms, rel=1e-8)
    rescored = score(draft(StageTables(problem), found.stages), problem)
    assert rescored.value_ms == pytest.approx(found.value_ms, rel=1e-9)


def test_a_micro_batch_alone_takes_the_links_of_its_servers_in_formula_and_simulation(
    random_inputs: RandomInputs,
) -> None:
    inputs = random_inputs(2, 3, [[("fast", 1)], [("fast", 1)], [("fast", 1)]], 10**9)
    predicted = {}
    for far in ("s1", "s2"):
        matrix = [pair("s0", far, 1e4, 7.0)]
        problem = Problem(
            inputs=with_matrix(inputs, *matrix),
            microbatch_size=1,
            num_microbatches=1,
            count_update=False,
        )
        choices = [StageChoice(0, 1, (1, 0, 0)), StageChoice(1, 3, (0, 1, 0))]
        plan = draft(StageTables(problem), choices)
        prediction = predict(plan, problem)
        assert prediction.timeline.step_ms <= prediction.score.value_ms * (1 + 1e-9)
        predicted[far] = prediction
    border = predicted["s1"].plan.borders[0]
    num_bytes = border.forward_bytes(1) + border.backward_bytes(1)
    usual = inputs.cluster.links.between_servers
    assert usual is not None
    more_ms = 2 * 7.0 + num_bytes / 1e4 * 1e3
    more_ms -= 2 * usual.latency_ms + num_bytes / usual.bandwidth_bytes_per_s * 1e3
    slow, usual_one = predicted["s1"], predicted["s2"]
    simulated_ms = slow.timeline.step_ms - usual_one.timeline.step_ms
    assert simulated_ms == pytest.approx(more_ms)
    assert slow.score.value_ms - usual_one.score.value_ms == pytest.approx(more_ms)


@pytest.mark.parametrize("objective", ["step-time", "throughput"])
@pytest.mark.parametrize("seed", range(8))
def test_the_searches_at_scale_bound_every_plan_on_a_matrix_of_links(
    random_inputs: RandomInputs, seed: int, objective: Objective
) -> None:
    inputs = random_inputs(seed, 4, [*CLUSTERS[seed % 3], [("slow", 1)]], 10**9)
    names = [server.name for server in inputs.cluster.servers]
    # From slower than what is usual between servers to faster than inside of them.
    bandwidths = itertools.islice(itertools.cycle((2e5, 5e9, 3e6)), seed, None)
    pairs = zip(itertools.pairwise(names), bandwidths, strict=False)
    matrix = [pair(*ends, bandwidth, 0.05 * seed) for ends, bandwidth in pairs]
    problem = Problem(
        inputs=with_matrix(inputs, *matrix),
        microbatch_size=2,
        num_microbatches=3 + seed % 5,
        objective=objective,
        overlap="none" if seed % 3 == 0 else "full",
    )
    best, one_type = exact.solve(problem), solve_by_labels(problem, 0.3)
    assert best is not None and one_type is not None
    assert one_type.bound_ms <= one_type.value_ms * (1 + 1e-9)
    if not any(mixes(problem, choice) for choice in best.stages):
        assert one_type.bound_ms <= best.value_ms * (1 + 1e-9)
    found = with_mixed_stages(problem, one_type, 0.5)
    assert found.mixed_bound_ms is not None
    assert found.mixed_bound_ms <= best.value_ms * (1 + 1e-9)
    assert best.value_ms <= found.value_ms * (1 + 1e-9)
    for solution in (one_type, found):
        rescored = score(draft(StageTables(problem), solution.stages), problem)
        assert rescored.value_ms == pytest.approx(solution.value_ms, rel=1e-9)
        if solution.certificate is not None:
            bound_ms = solution.certificate.bound_ms
            checked = check_certificate(solution.certificate, problem.inputs, Path("plan.json"))
            assert checked == pytest.approx(bound_ms)


def mixes(problem: Problem, choice: StageChoice) -> bool:
    """Return whether a stage has devices of several types."""
    used = {g.device_type for g, n in zip(problem.groups, choice.devices, strict=True) if n}
    return len(used) > 1
