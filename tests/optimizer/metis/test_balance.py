"""Metis's layer balancer, against its own partitions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stagewright.optimizer.metis.balance import balance

from .problems import golden


def test_partitions_are_those_of_metis() -> None:
    content = golden("golden_balancers.json")
    for case in content["balance"]:
        found = balance(case["capacity"], content["norm_demand"])
        assert list(found) == case["partition"]


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(2, 12))
def test_a_partition_never_decreases_and_never_exceeds_the_layers(
    seed: int, num_stages: int, num_layers: int
) -> None:
    rng = np.random.default_rng(seed)
    capacity, demand = rng.dirichlet(np.ones(num_stages)), rng.dirichlet(np.ones(num_layers))
    found = balance(capacity.tolist(), demand.tolist())
    assert len(found) == num_stages + 1
    assert found[0] == 0 and found[-1] <= num_layers
    assert list(found) == sorted(found)
