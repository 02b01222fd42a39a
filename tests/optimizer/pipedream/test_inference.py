"""Plans for inference (optimizer/solvers/inference.py) against every plan."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.document import InputError
from stagewright.optimizer.pipedream.cuts import chain_cuts
from stagewright.optimizer.pipedream.inference import InferenceRequest, plan_inference
from stagewright.optimizer.pipedream.topology import topology_of
from stagewright.optimizer.solvers.inference import InferenceProblem, solve
from stagewright.pipedream_graph import TextGraph

MakeGraph = Callable[[int, int], TextGraph]


def best_latency_s(problem: InferenceProblem) -> float:
    """Return the least latency over every cut and every number of replicas, one by one."""
    best, end = math.inf, len(problem.cuts) - 1
    seconds, sent = problem.forward_s, problem.transfer_s
    most = 1 if problem.straight else problem.num_devices
    for parts in range(1, min(end, problem.num_devices) + 1):
        for inner in itertools.combinations(range(1, end), parts - 1):
            for replicas in itertools.product(range(1, most + 1), repeat=parts):
                if sum(replicas) > problem.num_devices:
                    continue
                latency = 0.0
                for p, q, m in zip((0, *inner), (*inner, end), replicas, strict=True):
                    compute = seconds[q] - seconds[p]
                    late = not problem.share_input and sent[p] / m > problem.period_s
                    if compute / m > problem.period_s or late:
                        latency = math.inf
                    latency += (compute + sent[p]) / (m if problem.share_input else 1)
                best = min(best, latency)
    return best


@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 6),
    num_devices=st.integers(1, 4),
    period_s=st.sampled_from([0.0113, 0.0217, 0.0531]),
    share_input=st.booleans(),
    count_transfers=st.booleans(),
    straight=st.booleans(),
)
def test_no_plan_has_less_latency_within_the_period(
    random_chain: MakeGraph,
    seed: int,
    size: int,
    num_devices: int,
    period_s: float,
    share_input: bool,
    count_transfers: bool,
    straight: bool,
) -> None:
    problem = InferenceProblem(
        cuts=chain_cuts(topology_of(random_chain(seed, size))),
        num_devices=num_devices,
        bandwidth_bytes_per_s=1e10,
        period_s=period_s,
        share_input=share_input,
        count_transfers=count_transfers,
        straight=straight,
    )
    best = best_latency_s(problem)
    if best == math.inf:
        with pytest.raises(InputError, match="allow"):
            solve(problem)
        return
    found = solve(problem)
    assert found.value_s == pytest.approx(best, rel=1e-9, abs=1e-15)
    assert sum(s.compute_s + s.transfer_s for s in found.stages) == pytest.approx(best)


def test_vgg16_gets_the_published_latency(shared_data: Callable[[str], Path]) -> None:
    outcome, _ = plan_inference(
        InferenceRequest(
            graph_path=shared_data("pipedream/vgg16.graph.txt"), num_devices=4, period_s=0.3
        )
    )
    assert outcome.pipeline.value_s == pytest.approx(0.0630, abs=5e-5)
    assert [len(stage.ranks) for stage in outcome.pipeline.stages] == [4]


def test_a_layer_that_cannot_keep_up_is_named(random_chain: MakeGraph) -> None:
    problem = InferenceProblem(
        cuts=chain_cuts(topology_of(random_chain(0, 5))),
        num_devices=2,
        bandwidth_bytes_per_s=1e9,
        period_s=1e-3,
        share_input=True,
    )
    with pytest.raises(InputError, match=r"layer 'n\d' takes .* ms forward, on 2 replicas"):
        solve(problem)
