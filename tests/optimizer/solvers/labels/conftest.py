"""Random chains, and the oracle: every plan of a chain, priced one by one with the cost model's functions."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stagewright.cluster import Link
from stagewright.optimizer.costs.cost import (
    Objective,
    compute_load_ms,
    deal_counts,
    gradient_sum_ms,
    link_load_ms,
    objective_ms,
    units_held,
    window_rounds,
)
from stagewright.optimizer.solvers.labels.arrays import Costs
from stagewright.optimizer.solvers.labels.chain import Chain, replica_steps
from stagewright.scheduling import FORWARD_ONLY

Rows = tuple[tuple[int, int, int, int], ...]
"""First layer, behind the last, type, replicas of each stage."""
RandomChain = Callable[[int], Chain]


def _runs(amounts: NDArray[Any]) -> NDArray[Any]:
    """Return sums over runs of layers, [last, first]."""
    edges = np.concatenate([[0.0], np.cumsum(amounts)])
    return np.tril(edges[:, None] - edges[None, :])


def _random_chain(seed: int) -> Chain:
    rng = np.random.default_rng(seed)
    size, kinds = int(rng.integers(2, 6)), int(rng.integers(1, 4))
    most = {1: 6, 2: 3, 3: 2}[kinds]
    counts = rng.integers(1, most + 1, kinds)
    num_microbatches = int(rng.integers(2, 9))
    base = rng.uniform(0.2, 2.0, size)
    if seed % 5 == 0:
        base[:] = 1.0
    speeds = rng.choice([1.0, 0.55, 0.3, 0.18], kinds)
    compute = np.array([_runs(base / speed) for speed in speeds])
    messages = rng.choice([0.0, 0.2, 2.0]) * rng.uniform(0, 1, (2, size + 1, size + 1))
    messages[:, :, 0] = 0.0
    forward, backward = np.stack([messages[:1]] * 2)[:, 0], np.stack([messages[1:]] * 2)[:, 0]
    weights, saved = _runs(rng.integers(0, 50, size)), _runs(rng.integers(1, 20, size))
    memory = rng.choice([30, 80, 150, 10_000], kinds)
    is_flushless, is_latency = seed % 7 == 3, seed % 7 == 5
    most_units = max(num_microbatches, counts.sum() if is_flushless else 0)
    fits = [np.clip((m - weights) // np.maximum(saved, 1), 0, most_units) for m in memory]
    ends = [_runs(rng.uniform(0, 0.2, size)) for _ in range(kinds)]
    replicas, replicas_for = replica_steps(num_microbatches, min(num_microbatches, counts.max()))
    costs = Costs(
        num_cuts=size,
        is_chain=True,
        num_microbatches=num_microbatches,
        is_step_time=bool(rng.random() < 0.5) and not (is_flushless or is_latency),
        is_latency=is_latency,
        waits=bool(rng.random() < 0.3),
        holds_all=bool(rng.random() < 0.2) and not (is_flushless or is_latency),
        is_flushless=is_flushless,
        counts=counts.astype(np.int64),
        type_of=np.arange(kinds),
        hourly=np.zeros(kinds),
        budget=math.inf,
        most=np.minimum(counts, num_microbatches).astype(np.int64),
        compute_ms=compute,
        end_ms=np.array(ends),
        own_bytes=weights,
        forward_ms=forward,
        backward_ms=backward,
        near=np.full(kinds, 99, dtype=np.int64),
        fits=np.array(fits).astype(np.int64),
        inside=np.full(kinds, 99, dtype=np.int64),
        sum_latency_ms=np.array([[0.05, 0.0], [0.05, 0.0]]),
        sum_ms_per_byte=np.array([[0.01, 0.0], [0.01, 0.0]]),
        replicas=replicas,
        replicas_for=replicas_for,
    )
    max_stages = int(rng.integers(1, 4)) if rng.random() < 0.2 else 0
    if rng.random() < 0.3:
        costs = _with_recompute(costs, weights, saved, memory)
    chain = Chain(("a", "b", "c")[:kinds], costs, max_stages, True)
    if is_latency and seed % 3:
        most_ms = float(compute.max()) * num_microbatches
        chain = replace(chain, period_ms=float(rng.uniform(0.1, 1.1)) * most_ms)
    if rng.random() < 0.3:
        hourly = rng.choice([0.0, 1.0, 2.5, 4.0], kinds)
        chain = chain.within(hourly, float(rng.uniform(0.1, 1.1) * (hourly @ counts)))
    return chain


def _with_recompute(
    costs: Costs, weights: NDArray[Any], saved: NDArray[Any], memory: NDArray[Any]
) -> Costs:
    """Return costs with every type once more, for stages that run forward again."""
    unit, num = np.maximum(saved // 3, 1), max(costs.num_microbatches, int(costs.fits.max()))
    fits = [np.clip((limit - weights - saved) // unit, 0, num).astype(np.int64) for limit in memory]
    return costs._replace(
        type_of=np.tile(costs.type_of, 2),
        most=np.tile(costs.most, 2),
        near=np.tile(costs.near, 2),
        inside=np.tile(costs.inside, 2),
        end_ms=np.tile(costs.end_ms, (2, 1, 1)),
        compute_ms=np.concatenate([costs.compute_ms, costs.compute_ms * 1.3]),
        fits=np.concatenate([costs.fits, np.array(fits)]),
    )


def _every_plan(chain: Chain, first: int, free: tuple[int, ...], stages: int = 0) -> Iterator[Rows]:
    """Yield every plan of the layers from one on."""
    costs = chain.costs
    if first == costs.num_cuts:
        yield ()
        return
    if chain.max_stages and stages == chain.max_stages:
        return
    for last in range(first + 1, costs.num_cuts + 1):
        for kind, one in enumerate(costs.type_of.tolist()):
            left = free[one]
            for count in range(1, min(left, costs.num_microbatches) + 1):
                rest = (*free[:one], left - count, *free[one + 1 :])
                used = costs.counts - np.array(rest)
                if used @ costs.hourly > costs.budget * (1 + 1e-12):
                    continue
                for tail in _every_plan(chain, last, rest, stages + 1):
                    yield ((first, last, kind, count), *tail)


def _value_of(
    chain: Chain,
    rows: Sequence[Sequence[int]],
    known: dict[tuple[int, ...], tuple[float, ...]] | None = None,
) -> float:
    """Return a plan's objective; infinite if a stage does not fit."""
    known = {} if known is None else known
    behind, behind_ms, load_ms = 0, 0.0, 0.0
    for row in reversed(rows):
        behind += row[3]
        key = (*row, behind)
        if key not in known:
            known[key] = _stage(chain, row, behind)
        latency, incoming, load, slope, intercept = known[key]
        load_ms = max(load_ms, load, slope * behind_ms + intercept)
        last = chain.costs.num_microbatches // row[3]
        if last != -(-chain.costs.num_microbatches // row[3]):
            slope, intercept = _window(chain, row, behind, last)
            load_ms = max(load_ms, slope * behind_ms + intercept)
        behind_ms += latency + incoming
    if math.isinf(load_ms) or load_ms > chain.period_ms:
        return math.inf
    return objective_ms(_objective(chain), behind_ms, load_ms)


def _objective(chain: Chain) -> Objective:
    if chain.costs.is_latency:
        return "latency"
    return "step-time" if chain.costs.is_step_time else "throughput"


def _schedule(costs: Costs) -> str:
    if costs.is_latency:
        return FORWARD_ONLY
    if costs.is_flushless:
        return "pipedream"
    return "gpipe" if costs.holds_all else "1f1b"


def _replica_ms(chain: Chain, row: Sequence[int]) -> tuple[float, float, float]:
    first, last, kind, _ = row
    forward = float(chain.costs.forward_ms[0, last, first])
    backward = float(chain.costs.backward_ms[0, last, first])
    compute = float(chain.costs.compute_ms[kind, last, first])
    return compute + (forward + backward if chain.costs.waits else 0.0), forward, backward


def _window(chain: Chain, row: Sequence[int], behind: int, dealt: int) -> tuple[float, float]:
    costs = chain.costs
    objective = _objective(chain)
    counts = np.array([dealt])
    units = units_held(_schedule(costs), counts, costs.num_microbatches, behind)
    times = np.array([_replica_ms(chain, row)[0]])
    slope, intercept = window_rounds(objective, times, counts, units)
    return float(slope[0]), float(intercept[0])


def _stage(chain: Chain, row: Sequence[int], behind: int) -> tuple[float, ...]:
    first, last, kind, count = row
    costs = chain.costs
    objective = _objective(chain)
    compute, forward, backward = _replica_ms(chain, row)
    counts = deal_counts(np.full(count, compute), costs.num_microbatches)
    units = units_held(_schedule(costs), counts, costs.num_microbatches, behind)
    if units.max() > costs.fits[kind, last, first]:
        return (0.0, 0.0, math.inf, 0.0, 0.0)
    link = Link(bandwidth_bytes_per_s=1e5, latency_ms=0.05)
    end = costs.end_ms[kind, last, first]
    end += float(gradient_sum_ms(float(costs.own_bytes[last, first]), count, [link]))
    load = float(compute_load_ms(objective, compute, float(counts.max()) * compute, end))
    incoming = 0.0 if costs.waits else forward + backward
    if not costs.waits:
        load = max(load, float(link_load_ms(objective, counts.max(), max(forward, backward))))
    slope, intercept = _window(chain, row, behind, int(counts.max()))
    return compute, incoming, load, slope, intercept


def _best_value(chain: Chain) -> float:
    """Return the least objective of all plans; infinite if none fits."""
    known: dict[tuple[int, ...], tuple[float, ...]] = {}
    free = tuple(chain.costs.counts.tolist())
    return min((_value_of(chain, p, known) for p in _every_plan(chain, 0, free)), default=math.inf)


@pytest.fixture
def best_value() -> Callable[[Chain], float]:
    return _best_value


@pytest.fixture
def plan_value() -> Callable[[Chain, Sequence[Sequence[int]]], float]:
    return _value_of


@pytest.fixture
def random_chain() -> RandomChain:
    return _random_chain
