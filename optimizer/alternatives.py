"""Plans beside the best one: the next best, the best under the simulator, and one with fewer devices."""

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


def best_plans(found: Sequence[tuple[Solution, Problem]], count: int) -> list[Ranked]:
    """Return the best plans over all micro-batch sizes, best first, with their predictions.

    Args:
        found: for each micro-batch size that has plans, an optimal one.

    Raises:
        InputError: the search is too large.
    """
    every = [(s, problem) for best, problem in found for s in k_best(problem, best, count)]
    every.sort(key=lambda pair: worth(*pair))
    return [
        Ranked(solution, problem, predict(draft(StageTables(problem), solution.stages), problem))
        for solution, problem in every[:count]
    ]


def worth(solution: Solution, problem: Problem) -> float:
    """Return a solution's value in the unit that the objective is reported in."""
    devices = [choice.devices for choice in solution.stages]
    return problem.reported_value(solution.value_ms, devices)


def bound_of(solution: Solution, problem: Problem) -> float:
    """Return a solution's bound in the unit that the objective is reported in."""
    devices = [choice.devices for choice in solution.stages]
    return problem.reported_value(solution.bound_ms, devices)


def fewer_devices(solution: Solution, problem: Problem) -> Fewer | None:
    """Return the fewest devices with a plan that does as well; None if there are no fewer.

    Raises:
        InputError: the cluster is too large for the exact solver.
    """
    value = worth(solution, problem)
    per_ms = problem.reported_value(1.0, [choice.devices for choice in solution.stages])
    per_ms /= problem.worth_of_ms([choice.devices for choice in solution.stages]) or 1.0
    best, count = None, sum(sum(choice.devices) for choice in solution.stages)
    while count > 1 and value > 0:
        limits = replace(problem.constraints, most_devices=count - 1)
        leaner = replace(problem, constraints=limits)
        found = exact.solve(leaner, below=AS_WELL * value / per_ms)
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
