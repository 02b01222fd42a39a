"""Solver `hierarchical`: recursive partitioning; halves the devices, then the layers in proportion.

A run of layers on a set of devices either stays one stage or is cut in two: the devices are divided by
server while there are several, then by type, then in halves, and the cut is looked for around the layer
where both sides take equally long. A few of the best plans of each half are kept and joined (a beam); whole
plans are compared by the closed formula. No proof beyond a work bound.

Source: recursive graph bisection, Simon, "Partitioning of unstructured problems for parallel processing",
1991, with the layers' chain in place of a graph.
"""

import itertools
import math
from collections.abc import Iterator

from stagewright.optimizer.costs.choices import value_of
from stagewright.optimizer.costs.tables import Devices, StageTables
from stagewright.optimizer.problem import Problem, StageChoice

from .devices import minus
from .local_search import work_bound_ms
from .solution import Solution, space_of

Choices = tuple[StageChoice, ...]
BEAM = 6
"""Plans kept of each half."""
CUTS_AROUND = (-2, -1, 0, 1, 2)


def solve(problem: Problem) -> Solution | None:
    """Return the best plan found; None if none was found that fits into memory."""
    tables = StageTables(problem)
    search = _Recursion(tables)
    everything = tuple(len(group.slots) for group in problem.groups)
    best: Choices | None = None
    best_ms = math.inf
    for devices in _subsets_to_try(everything):
        for choices in search.plans(0, tables.size, devices):
            if problem.max_stages is not None and len(choices) > problem.max_stages:
                continue
            value_ms = value_of(tables, choices)
            search.evaluated += 1
            if value_ms is not None and value_ms < best_ms:
                best, best_ms = choices, value_ms
    if best is None:
        return None
    return Solution(
        solver="hierarchical",
        stages=best,
        value_ms=best_ms,
        bound_ms=min(work_bound_ms(tables), best_ms),
        space=space_of(problem),
        evaluated=search.evaluated,
    )


def _subsets_to_try(everything: Devices) -> Iterator[Devices]:
    """Yield all devices, then all but one group, so that slow ones can stay idle."""
    yield everything
    for place, count in enumerate(everything):
        if count and sum(everything) > count:
            yield tuple(0 if index == place else n for index, n in enumerate(everything))


class _Recursion:
    """Plans of a run of layers on a set of devices."""

    def __init__(self, tables: StageTables) -> None:
        self.tables = tables
        self.evaluated = 0
        self._known: dict[tuple[int, int, Devices], tuple[Choices, ...]] = {}

    def plans(self, first: int, last: int, devices: Devices) -> tuple[Choices, ...]:
        """Return the best few plans of layers first to last, least slowest stage first."""
        key = (first, last, devices)
        if key not in self._known:
            found = set(self._candidates(first, last, devices))
            ranked = sorted(found, key=lambda choices: (self._slowest_ms(choices), str(choices)))
            self._known[key] = tuple(ranked[:BEAM])
        return self._known[key]

    def _candidates(self, first: int, last: int, devices: Devices) -> Iterator[Choices]:
        if sum(devices) <= self.tables.problem.num_microbatches:
            yield (StageChoice(first, last, devices),)
        if last - first < 2 or sum(devices) < 2:
            return
        for one, other in self._halves(devices):
            for front, back in ((one, other), (other, one)):
                for cut in self._cuts(first, last, front, back):
                    pairs = itertools.product(
                        self.plans(first, cut, front), self.plans(cut, last, back)
                    )
                    yield from (left + right for left, right in pairs)

    def _halves(self, devices: Devices) -> Iterator[tuple[Devices, Devices]]:
        """Yield ways to divide devices in two: by server, or by group, or one group in half."""
        groups = self.tables.problem.groups
        present = [place for place, count in enumerate(devices) if count]
        servers = list(dict.fromkeys(groups[place].server for place in present))
        if len(servers) > 1:
            for server in servers[:-1] if len(servers) == 2 else servers:
                one = tuple(
                    n if groups[place].server == server else 0 for place, n in enumerate(devices)
                )
                yield one, minus(devices, one)
        elif len(present) > 1:
            for place in present[:-1] if len(present) == 2 else present:
                one = tuple(n if index == place else 0 for index, n in enumerate(devices))
                yield one, minus(devices, one)
        else:
            for count in sorted({1, devices[present[0]] // 2}):
                one = tuple(count if index == present[0] else 0 for index in range(len(devices)))
                yield one, minus(devices, one)

    def _cuts(self, first: int, last: int, front: Devices, back: Devices) -> list[int]:
        """Return cuts around the one where both sides take equally long."""

        def imbalance(cut: int) -> float:
            return abs(self._share_ms(first, cut, front) - self._share_ms(cut, last, back))

        even = min(range(first + 1, last), key=imbalance)
        return [even + step for step in CUTS_AROUND if first < even + step < last]

    def _share_ms(self, first: int, last: int, devices: Devices) -> float:
        """Return the time a micro-batch of some layers takes if devices share it in proportion to speed."""
        speed = 0.0
        for device_type in self.tables.types_of(devices):
            times = self.tables.times[device_type]
            own_ms = float(times.forward_ms[first, last] + times.backward_ms[first, last])
            speed += 1 / own_ms if own_ms else math.inf
        return 1 / speed

    def _slowest_ms(self, choices: Choices) -> float:
        return max(self._share_ms(choice.first, choice.last, choice.devices) for choice in choices)
