"""Simple plans: what anyone might try; no search may return a worse plan than the best of them."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from stagewright.optimizer.costs.choices import value_of
from stagewright.optimizer.costs.tables import Devices, StageTables
from stagewright.optimizer.problem import Problem, StageChoice

from .devices import unit
from .solution import Solution

Choices = tuple[StageChoice, ...]


def at_least_simple(problem: Problem, solution: Solution | None) -> Solution | None:
    """Return a search's solution, or a simple plan with the search's bound if that is better."""
    if problem.constraints.named:
        return solution
    if solution is None:
        return None  # The search proved that nothing fits into its space; that is its answer.
    return at_least(problem, solution, simple_plans(StageTables(problem)))


def at_least(problem: Problem, solution: Solution, plans: Iterable[Choices]) -> Solution:
    """Return a search's solution, or the best of some plans with the search's bound if that is better."""
    tables = StageTables(problem)

    def worth_of_ms(choices: Choices) -> float:
        return problem.worth_of_ms([choice.devices for choice in choices])

    bound = worth_of_ms(solution.stages) * solution.bound_ms
    for choices in plans:
        value_ms, each = value_of(tables, choices), worth_of_ms(choices)
        best = worth_of_ms(solution.stages) * solution.value_ms
        if value_ms is not None and each * value_ms < best:
            bound_ms = min(bound / each, value_ms) if each else 0.0
            solution = replace(solution, stages=choices, value_ms=value_ms, bound_ms=bound_ms)
    return solution


def simple_plans(tables: StageTables) -> Iterator[Choices]:
    """Yield one stage on all devices of each type, and pipelines of one device a stage.

    These over 1, 2, 4, ... of the fastest devices, layers by speed.
    """
    problem = tables.problem
    for device_type in tables.times:
        own = tuple(
            len(group.slots) * (group.device_type == device_type) for group in problem.groups
        )
        if 0 < sum(own) <= problem.num_microbatches:
            yield (StageChoice(0, tables.size, own),)
    order = [
        (place, group.device_type)
        for place, group in enumerate(problem.groups)
        for _ in group.slots
    ]
    order.sort(key=lambda device: _whole_ms(tables, device[1]))
    spine = problem.cuts.spine.tolist()
    most = min(len(order), len(spine) - 1, problem.max_stages or len(order))
    counts = sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)})
    for count in counts:
        chosen = order[:count]
        devices: list[Devices] = [unit(place, len(problem.groups)) for place, _ in chosen]
        edges = _edges_by_speed(tables, [device_type for _, device_type in chosen])
        yield tuple(
            StageChoice(spine[edges[i]], spine[edges[i + 1]], devices[i]) for i in range(count)
        )


def _whole_ms(tables: StageTables, device_type: str) -> float:
    times = tables.times[device_type]
    return float(times.forward_ms[0, tables.size] + times.backward_ms[0, tables.size])


def _edges_by_speed(tables: StageTables, types: list[str]) -> list[int]:
    """Return places in the spine that give each stage work in proportion to its device's speed."""
    spine = tables.problem.cuts.spine.tolist()
    reference = tables.times[types[0]]
    speeds = [1 / max(_whole_ms(tables, device_type), 1e-12) for device_type in types]
    whole_ms = _whole_ms(tables, types[0])
    edges, done = [0], 0.0
    for stage, speed in enumerate(speeds[:-1]):
        done += speed / sum(speeds)
        last = edges[-1] + 1
        most = len(spine) - 1 - (len(types) - 1 - stage)
        while last < most:
            at = (0, spine[last])
            work_ms = float(reference.forward_ms[at] + reference.backward_ms[at])
            if work_ms >= done * whole_ms:
                break
            last += 1
        edges.append(last)
    return [*edges, len(spine) - 1]
