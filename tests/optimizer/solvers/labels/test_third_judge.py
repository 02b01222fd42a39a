"""A third judge of throughput: the same small chains as a constraint programme, its costs written anew.

A plan is a path: from (first layer, replicas from there on) over one arc per stage to (no layer left, 0).
"""

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from ortools.sat.python import cp_model

from stagewright.optimizer.costs.cost import IntArray
from stagewright.optimizer.problem import StageChoice
from stagewright.optimizer.solvers.labels.chain import Chain
from stagewright.optimizer.solvers.labels.found import Found
from stagewright.optimizer.solvers.labels.solve import search

RandomChain = Callable[[int], Chain]
BestValue = Callable[[Chain], float]
PlanValue = Callable[[Chain, Sequence[Sequence[int]]], float]

CASES = int(os.environ.get("STAGEWRIGHT_FUZZ_EXAMPLES", "100")) * 2
BLOCKS = max(10, CASES // 100)
SCALE = 10**6
"""Times are whole nanoseconds."""


def scaled(time_ms: float) -> int:
    return round(float(time_ms) * SCALE)


class Programme:
    """The constraint programme of one chain."""

    def __init__(self, chain: Chain) -> None:
        self.chain, self.costs = chain, chain.costs
        self.model = cp_model.CpModel()
        most_ms = 1000 * float(self.costs.compute_ms.max()) * self.costs.num_microbatches
        self.slowest = self.model.new_int_var(0, scaled(most_ms), "slowest")
        self.behind_ms = [
            self.model.new_int_var(0, scaled(most_ms), f"behind {layer}")
            for layer in range(self.costs.num_cuts + 1)
        ]
        self.leaving: dict[tuple[int, int], list[cp_model.IntVar]] = defaultdict(list)
        self.arriving: dict[tuple[int, int], list[cp_model.IntVar]] = defaultdict(list)
        self.used: dict[int, list[cp_model.LinearExprT]] = defaultdict(list)

    def build(self) -> cp_model.CpModel:
        size, devices = self.costs.num_cuts, int(self.costs.counts.sum())
        for first in range(size):
            for last in range(first + 1, size + 1):
                for kind, free in enumerate(self.costs.most.tolist()):
                    for count in range(1, free + 1):
                        for behind in range(count, devices + 1):
                            self._arc(first, last, kind, count, behind)
        self.model.add_exactly_one(
            arc for place, arcs in self.leaving.items() if place[0] == 0 for arc in arcs
        )
        for place in sorted({*self.leaving, *self.arriving}):
            if place[0] not in (0, size):
                self.model.add(sum(self.leaving[place]) == sum(self.arriving[place]))
            elif place[0] == size and place[1]:
                self.model.add(sum(self.arriving[place]) == 0)
        for kind, used in self.used.items():
            self.model.add(sum(used) <= int(self.costs.counts[kind]))
        if math.isfinite(self.costs.budget):
            prices = [scaled(price) for price in self.costs.hourly.tolist()]
            paid = sum(prices[kind] * one for kind, used in self.used.items() for one in used)
            self.model.add(paid <= math.floor(self.costs.budget * (1 + 1e-12) * SCALE))
        if self.chain.max_stages:
            arcs = [arc for own in self.leaving.values() for arc in own]
            self.model.add(sum(arcs) <= self.chain.max_stages)
        self.model.add(self.behind_ms[size] == 0)
        self.model.minimize(self.slowest)
        return self.model

    def _arc(self, first: int, last: int, kind: int, count: int, behind: int) -> None:
        """Add a stage, if it fits; behind counts the replicas from it to the last stage."""
        costs, place = self.costs, (last, first)
        dealt = {-(-costs.num_microbatches // count), costs.num_microbatches // count}
        units = {n: -(-behind * n // costs.num_microbatches) for n in dealt}
        if not costs.is_flushless:
            units = {n: n if costs.holds_all else min(n, held) for n, held in units.items()}
        if max(units.values()) > costs.fits[kind][place]:
            return
        messages = [float(costs.forward_ms[0][place]), float(costs.backward_ms[0][place])]
        replica = float(costs.compute_ms[kind][place]) + (sum(messages) if costs.waits else 0.0)
        rounds = 2 * (count - 1)
        own_bytes = float(costs.own_bytes[place])
        sum_ms = rounds * 0.05 + rounds / count * own_bytes / 100 if own_bytes else 0.0
        load = max(dealt) * replica + float(costs.end_ms[kind][place]) + sum_ms
        if not costs.waits:
            load = max(load, max(dealt) * max(messages))
        arc = self.model.new_bool_var(f"{first}..{last} on {count} x {kind}, {behind}")
        self.leaving[first, behind].append(arc)
        self.arriving[last, behind - count].append(arc)
        self.used[int(costs.type_of[kind])].append(count * arc)
        latency = scaled(replica + (0.0 if costs.waits else sum(messages)))
        after = self.behind_ms[last]
        self.model.add(self.behind_ms[first] == after + latency).only_enforce_if(arc)
        self.model.add(self.slowest >= scaled(load)).only_enforce_if(arc)
        for number, held in units.items():
            self.model.add(
                held * self.slowest >= number * after + number * scaled(replica)
            ).only_enforce_if(arc)


def best_by_constraints(chain: Chain) -> float:
    """Return the least load of all plans; infinite if none fits."""
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    # OR-tools 9.15 cuts off solutions without this, google/or-tools issue 5293.
    solver.parameters.presolve_inclusion_work_limit = 0
    status = solver.solve(Programme(chain).build())
    if status == cp_model.INFEASIBLE:
        return math.inf
    assert status == cp_model.OPTIMAL
    return solver.objective_value / SCALE


@pytest.mark.parametrize("block", range(BLOCKS))
def test_brute_force_labels_and_constraints_agree_on_throughput(
    random_chain: RandomChain, best_value: BestValue, plan_value: PlanValue, block: int
) -> None:
    for seed in range(block * CASES // BLOCKS, (block + 1) * CASES // BLOCKS):
        drawn = random_chain(seed)
        costs = drawn.costs._replace(is_step_time=False, is_latency=False)
        chain = replace(drawn, costs=costs, period_ms=math.inf)

        def evaluate(
            rows: IntArray, chain: Chain = chain
        ) -> tuple[float, tuple[StageChoice, ...]] | None:
            value_ms = plan_value(chain, rows.tolist())
            stages = tuple(StageChoice(row[0], row[1], (row[2], row[3])) for row in rows.tolist())
            return None if math.isinf(value_ms) else (value_ms, stages)

        found = Found(evaluate, time.perf_counter() + 60)
        search(chain, chain, found)
        best, third = best_value(chain), best_by_constraints(chain)
        assert math.isinf(best) == math.isinf(third) == (not found.stages), seed
        if found.stages:
            assert third == pytest.approx(best, rel=1e-4), seed
            assert found.value_ms == pytest.approx(third, rel=1e-4), seed
