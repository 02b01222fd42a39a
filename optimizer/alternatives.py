"""Plans beside the best one: the next best, the best under the simulator, and one with fewer devices."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .assemble import Prediction, draft, predict
from .costs.tables import StageTables
from .problem import Problem
from .solvers import exact
from .solvers.k_best import k_best
from .solvers.solution import Solution

AS_WELL = 1.001
"""A plan does as well as another if its value is at most so many times the other's."""


@dataclass(frozen=True)
class Ranked:
    """One of the best plans."""

    solution: Solution
    problem: Problem
    prediction: Prediction

    @property
    def value(self) -> float:
        """Under the closed formula; of objective cost, the price of 1 000 steps."""
        return self.problem.reported_value(
            self.solution.value_ms, [choice.devices for choice in self.solution.stages]
        )

    @property
    def simulated(self) -> float:
        """The same with the simulator's step time."""
        return self.problem.reported_value(
            self.prediction.timeline.step_ms, [choice.devices for choice in self.solution.stages]
        )


@dataclass(frozen=True)
class Fewer:
    """Devices that do as well as those of the plan."""

    devices: tuple[tuple[str, str, int], ...]
    """(server, device type, how many), in the order of the cluster."""
    value: float
    more: float
    """How much greater the value is than the plan's, as a fraction."""

    def __str__(self) -> str:
        return " + ".join(f"{count} x {kind} of {server}" for server, kind, count in self.devices)


def best_plans(
    found: Sequence[tuple[Solution, Problem]], count: int, deadline: float = math.inf
) -> tuple[list[Ranked], bool]:
    """Return the best plans over all micro-batch sizes, best first, and whether those are all.

    Later than the deadline (by time.perf_counter), or interrupted, only those that are proven by then to
    follow one another.

    Args:
        found: for each micro-batch size that has plans, an optimal one.

    Raises:
        InputError: the search is too large.
    """
    every: list[tuple[Solution, Problem]] = []
    limit, is_whole = math.inf, True
    """What is unknown is not better than this."""
    for best, problem in found:
        known, whole = k_best(problem, best, count, deadline)
        every += [(solution, problem) for solution in known]
        if not whole:
            limit, is_whole = min(limit, worth(known[-1], problem)), False
    every.sort(key=lambda pair: worth(*pair))
    ranked = [
        Ranked(solution, problem, predict(draft(StageTables(problem), solution.stages), problem))
        for solution, problem in every[:count]
        if worth(solution, problem) <= limit
    ]
    return ranked, is_whole or len(ranked) == count


def worth(solution: Solution, problem: Problem) -> float:
    """Return a solution's value in the unit that the objective is reported in."""
    devices = [choice.devices for choice in solution.stages]
    return problem.reported_value(solution.value_ms, devices)


def fewer_devices(solution: Solution, problem: Problem, deadline: float = math.inf) -> Fewer | None:
    """Return the fewest devices with a plan that does as well; None if there are no fewer.

    Later than the deadline (by time.perf_counter), or interrupted, the fewest that are known by then.

    Raises:
        InputError: the cluster is too large for the exact solver.
    """
    value = worth(solution, problem)
    per_ms = problem.reported_value(1.0, [choice.devices for choice in solution.stages])
    per_ms /= problem.worth_of_ms([choice.devices for choice in solution.stages]) or 1.0
    best, count = None, sum(sum(choice.devices) for choice in solution.stages)
    while count > 1 and value > 0 and time.perf_counter() < deadline:
        limits = replace(problem.constraints, most_devices=count - 1)
        leaner = replace(problem, constraints=limits)
        left_s = None if math.isinf(deadline) else deadline - time.perf_counter()
        try:
            found = exact.solve(leaner, left_s, below=AS_WELL * value / per_ms)
        except KeyboardInterrupt:
            break  # The plan itself is known.
        if found is None:
            break
        best, count = found, sum(sum(choice.devices) for choice in found.stages)
    if best is None:
        return None
    used = Counter[int]()
    for choice in best.stages:
        used.update({index: count for index, count in enumerate(choice.devices) if count})
    groups = problem.groups
    return Fewer(
        devices=tuple((groups[i].server, groups[i].device_type, used[i]) for i in sorted(used)),
        value=worth(best, problem),
        more=worth(best, problem) / value - 1,
    )
