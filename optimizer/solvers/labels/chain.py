"""A planning problem as plain arrays: the cuts of a graph on device types with counts, one type per stage.

Times and bytes are those of optimizer/costs, entry [kind, last, first] for the layers between the cuts first
and last; cuts are nodes and stages arcs, whether each cut lies within the next (a chain) or not. A kind of
stage is a device type, or one whose stages run forward again: V kinds, K types. Servers are not told apart:
`optimistic` costs are at most those of any placement of the devices on the servers (bounds use them), the
others are what a good placement is expected to reach (plans are searched with them, placed, and scored
again). Where servers make no difference both are exact.
"""

import itertools
import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from stagewright.cluster import Link
from stagewright.flushless import FLUSHLESS
from stagewright.optimizer.costs.cost import FloatArray, IntArray, has_flush, transfer_ms
from stagewright.optimizer.costs.tables import StageTables
from stagewright.optimizer.problem import Problem

from .arrays import Costs

MONEY_SLACK = 1 + 1e-12
"""Prices within a budget up to rounding are within it."""


@dataclass(frozen=True)
class Chain:
    """The arrays with what the search needs around them."""

    types: tuple[str, ...]
    """Device types."""
    costs: Costs
    max_stages: int
    """0: unlimited."""
    is_exact: bool
    """Whether every placement on servers costs the same, so that nothing is estimated."""
    period_ms: float = math.inf
    """The most that a load may be, where that is limited."""

    @cached_property
    def num_devices(self) -> int:
        return int(self.costs.counts.sum())

    @property
    def num_types(self) -> int:
        return len(self.types)

    def within(self, hourly: FloatArray, budget: float) -> "Chain":
        """Return the same for plans whose devices cost at most a budget per hour."""
        costs = self.costs
        allowed = np.minimum(budget * MONEY_SLACK / np.maximum(hourly, 1e-300), costs.counts)
        allowed = np.where(hourly > 0, np.floor(allowed), costs.counts).astype(np.int64)
        most = np.minimum(costs.most, allowed[costs.type_of])
        limited = costs._replace(hourly=hourly, budget=budget, most=most)
        return replace(self, costs=limited)

    @property
    def all_busy_ms(self) -> float:
        """The step if every device were busy with its part of the layers; 0 if they take no time."""
        costs = self.costs
        whole_ms = costs.compute_ms[: self.num_types, -1, 0].tolist()
        pairs = zip(costs.counts.tolist(), whole_ms, strict=True)
        speed: float = sum(count / ms for count, ms in pairs if ms > 0)
        return costs.num_microbatches / speed if speed else 0.0

    @property
    def most_load_ms(self) -> float:
        """No load is above it: the period, or else what memory, money and the user's choices leave anyway."""
        costs = self.costs
        whole = float(costs.compute_ms[: self.num_types, -1, 0].max())
        slowest = costs.num_microbatches * (
            whole + float(costs.forward_ms.sum() + costs.backward_ms.sum())
        )
        return min(self.period_ms, 1e3 * (slowest + float(costs.end_ms.max()) + 1))

    @property
    def units_are_dealt(self) -> bool:
        """Whether no replica holds more units than it is dealt micro-batches in a step."""
        costs = self.costs
        return not costs.is_flushless or self.num_devices <= costs.num_microbatches

    @property
    def windows_are_implied(self) -> bool:
        """Whether loads within a threshold imply that windows of units in flight are.

        Without messages beside the compute, t_s <= T r_s / M for every stage, so t_s and all behind it sum
        to at most T U / M, and u / n >= U / M while the step has a micro-batch for every device.
        """
        costs = self.costs
        if costs.is_latency:
            return True
        if costs.holds_all:
            return costs.is_step_time
        silent = costs.waits or not (costs.forward_ms.any() or costs.backward_ms.any())
        enough = costs.is_flushless or self.num_devices <= costs.num_microbatches
        return silent and enough and not costs.is_step_time


def chain_costs(tables: StageTables, *, optimistic: bool) -> Chain:
    """Return a problem's arrays.

    Raises:
        InputError: something that the cost depends on was not measured.
    """
    problem = tables.problem
    types = tuple(dict.fromkeys(group.device_type for group in problem.groups))
    num, limit = problem.num_microbatches, problem.num_microbatches
    if problem.constraints.straight:
        limit = 1
    counts = [sum(len(g.slots) for g in problem.groups if g.device_type == t) for t in types]
    near_links, far_links = _message_links(problem, optimistic)
    replicas, replicas_for = replica_steps(num, min(limit, max(counts)))
    shared_ms = tables.shared_sum_ms
    sums = sum_links(problem, optimistic)
    # A stage that runs forward again: every type once more, behind the plain ones.
    times = [tables.times[t] for t in types]
    compute = [t.forward_ms + t.backward_ms for t in times]
    variants = 2 if problem.constraints.allow_recompute else 1
    if variants == 2:
        compute += [2.0 * t.forward_ms + t.backward_ms for t in times]
    costs = Costs(
        num_cuts=tables.size,
        is_chain=problem.cuts.is_chain,
        num_microbatches=num,
        is_step_time=has_flush(problem.objective),
        is_latency=problem.is_inference,
        waits=problem.overlap == "none",
        holds_all=problem.schedule == "gpipe",
        is_flushless=problem.schedule in FLUSHLESS,
        counts=np.array(counts, dtype=np.int64),
        type_of=np.array([*range(len(types))] * variants, dtype=np.int64),
        hourly=np.zeros(len(types)),
        budget=math.inf,
        most=np.array([min(count, limit) for count in counts] * variants, dtype=np.int64),
        compute_ms=_turned(compute),
        end_ms=_turned([t.update_ms + shared_ms for t in times] * variants),
        own_bytes=_turned([tables.holdings.trained - tables.holdings.shared])[0],
        forward_ms=_turned(
            [_messages(tables.traffic.received, k) for k in (near_links, far_links)]
        ),
        backward_ms=_turned(
            [_messages(tables.traffic.received_gradient, k) for k in (near_links, far_links)]
        ),
        near=np.array([_near(problem, t, optimistic) for t in types] * variants, dtype=np.int64),
        fits=_fits(tables, types, optimistic, recompute=variants == 2),
        inside=np.array([most_in_one_server(problem, t) for t in types] * variants, dtype=np.int64),
        sum_latency_ms=sums[0],
        sum_ms_per_byte=sums[1],
        replicas=replicas,
        replicas_for=replicas_for,
    )
    is_exact = _placement_is_free(problem) and _versions_are_known(problem)
    chain = Chain(types, costs, problem.max_stages or 0, is_exact, problem.most_load_ms)
    budget = problem.constraints.budget_per_hour
    return chain if budget is None else chain.within(hourly_prices(problem, types), budget)


def hourly_prices(problem: Problem, types: tuple[str, ...]) -> FloatArray:
    """Return the price per hour of a device of each type.

    Raises:
        InputError: a type has none.
    """
    groups = [group.device_type for group in problem.groups]
    places = [groups.index(name) for name in types]
    return np.array(
        [
            problem.price_per_hour(tuple(int(index == place) for index in range(len(groups))))
            for place in places
        ]
    )


def replica_steps(num_microbatches: int, most: int) -> tuple[IntArray, IntArray]:
    """Return Costs.replicas up to `most` and Costs.replicas_for (len(replicas) where there is none)."""
    dealt = [-(-num_microbatches // count) for count in range(1, most + 1)]
    steps = [1 + i for i in range(most) if i == 0 or dealt[i] < dealt[i - 1]]
    least = np.array([-(-num_microbatches // count) for count in steps])
    wanted = np.arange(num_microbatches + 1)
    index = (least[None, :] > wanted[:, None]).sum(axis=1)
    return np.array(steps, dtype=np.int64), index.astype(np.int64)


def _turned(tables: list[FloatArray]) -> FloatArray:
    """Return tables [first, last] as one array [table, last, first]."""
    return np.ascontiguousarray(np.stack(tables).transpose(0, 2, 1))


def _messages(num_bytes: FloatArray, choices: list[tuple[Link, ...]]) -> FloatArray:
    """Return the time of messages over the fastest of some choices of links."""
    return np.asarray(np.min([transfer_ms(num_bytes, links) for links in choices], axis=0))


def _links(problem: Problem) -> tuple[tuple[Link, ...], tuple[Link, ...]]:
    """Return the kinds of links inside servers, and between them."""
    servers = sorted(problem.all_servers)
    between = itertools.combinations(servers, 2)
    inside = (problem.inputs.cluster.link_between(name, name) for name in servers)
    return (
        tuple(dict.fromkeys(inside)),
        tuple(dict.fromkeys(problem.inputs.cluster.link_between(*pair) for pair in between)),
    )


def _message_links(
    problem: Problem, optimistic: bool
) -> tuple[list[tuple[Link, ...]], list[tuple[Link, ...]]]:
    """Return the links that messages may use: of a stage near the one before it, and of any other."""
    inside, between = _links(problem)
    if optimistic and between:
        return [(link,) for link in (*inside, *between)], [(link,) for link in between]
    return [(*inside, *between)], [(*inside, *between)]


def sum_links(problem: Problem, optimistic: bool) -> tuple[FloatArray, FloatArray]:
    """Return Costs.sum_latency_ms and Costs.sum_ms_per_byte."""
    latency, per_byte = np.zeros((2, 2)), np.zeros((2, 2))
    choose = min if optimistic else max
    for kind, links in enumerate(_links(problem)):
        if links:
            latency[kind:, kind] = choose(link.latency_ms for link in links)
            per_byte[kind:, kind] = choose(1e3 / link.bandwidth_bytes_per_s for link in links)
    return latency, per_byte


def most_in_one_server(problem: Problem, device_type: str) -> int:
    return max(len(g.slots) for g in problem.groups if g.device_type == device_type)


def _near(problem: Problem, device_type: str, optimistic: bool) -> int:
    """Return the most replicas of a stage that can share one server with a replica of the stage before."""
    if not optimistic or len(problem.all_servers) == 1:
        return problem.num_devices
    most = 0
    for server in sorted(problem.all_servers):
        own = [g for g in problem.groups if g.server == server]
        mine = sum(len(g.slots) for g in own if g.device_type == device_type)
        most = max(most, min(mine, sum(len(g.slots) for g in own) - 1))
    return most


def _placement_is_free(problem: Problem) -> bool:
    inside, between = _links(problem)
    return len({*inside, *between}) == 1


def _versions_are_known(problem: Problem) -> bool:
    """Return whether the units that a replica holds tell how many versions of its weights it needs.

    With u units of n per step these are 1 + ceil((u - 1) / n), and u <= ceil(U n / M) for U replicas: two at
    most, and two from the second unit on, unless there are more replicas than micro-batches.
    """
    return problem.schedule != "pipedream" or problem.num_devices <= problem.num_microbatches


def _fits(
    tables: StageTables, types: tuple[str, ...], optimistic: bool, *, recompute: bool
) -> IntArray:
    """Return Costs.fits; 0 for runs that the user does not let be a stage.

    Stages that run forward again take longer: only those that hold more units are of use.
    """
    plain = [_units_that_fit(tables, name, optimistic, recompute=False) for name in types]
    again = [
        _units_that_fit(tables, name, optimistic, recompute=True) for name in types * recompute
    ]
    useful = [np.where(more > few, more, 0) for more, few in zip(again, plain, strict=False)]
    return np.ascontiguousarray(np.stack([*plain, *useful]))


def _units_that_fit(
    tables: StageTables, device_type: str, optimistic: bool, *, recompute: bool
) -> IntArray:
    problem = tables.problem
    most = problem.num_microbatches
    if problem.schedule in FLUSHLESS:
        most = max(most, problem.num_devices)
    allowed = tables.allowed_stages(frozenset({device_type}))
    if not problem.count_memory:
        return np.where(allowed, most, 0).T.astype(np.int64)
    limit = problem.memory_limit(device_type)

    def units_with(versions: int) -> FloatArray:
        fixed = tables.memory(device_type, np.array(0.0), ..., recompute, versions)
        unit = tables.memory(device_type, np.array(1.0), ..., recompute, versions) - fixed
        room = limit - fixed
        units = np.where(unit > 0, room // np.maximum(unit, 1), most)
        return np.where(room < 0, 0, np.minimum(units, most))

    if problem.schedule == "pipedream":
        units = np.minimum(units_with(1), 1)
        more = 1 if optimistic else -(-problem.num_devices // problem.num_microbatches)
        for versions in range(2, more + 2):
            # So many versions are enough for as many units, the most for any number.
            held = units_with(versions)
            units = np.maximum(units, held if versions == more + 1 else np.minimum(held, versions))
    else:
        units = units_with(2 if problem.schedule == "pipedream-2bw" else 1)
    return np.where(allowed, units, 0).T.astype(np.int64)
