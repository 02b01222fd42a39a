"""Solver `local-search`: improves plans by small moves, from several starts; no proof beyond a work bound.

Moves: shift a cut, split a stage in two, merge two neighbours, give a device to a stage or take one away,
exchange devices between two stages. Each round takes the best move; where none helps, a few random moves
start the next descent. Deterministic: the random numbers have a fixed seed.

Source: iterated local search, Lourenço, Martin and Stützle, "Handbook of Metaheuristics", 2003.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from stagewright.optimizer.costs.choices import value_of
from stagewright.optimizer.costs.tables import Devices, StageTables
from stagewright.optimizer.problem import Problem, StageChoice

from .devices import minus, plus, unit
from .solution import Solution, space_of

Choices = tuple[StageChoice, ...]
MOST_EVALUATIONS = 20_000
NUM_KICKS = 30
KICK_LENGTH = 3
SHIFTS = (1, 2, 4, 8)


@dataclass
class _Scores:
    """Values of plans, each computed once."""

    tables: StageTables
    known: dict[Choices, float] = field(default_factory=dict)

    def of(self, choices: Choices) -> float:
        """Return a plan's value in ms; infinite if it does not fit, or if a stage has idle replicas."""
        if choices not in self.known:
            self.known[choices] = self._compute(choices)
        return self.known[choices]

    def _compute(self, choices: Choices) -> float:
        problem = self.tables.problem
        if problem.max_stages is not None and len(choices) > problem.max_stages:
            return math.inf
        if any(sum(choice.devices) > problem.num_microbatches for choice in choices):
            return math.inf
        value = value_of(self.tables, choices)
        return math.inf if value is None else value

    @property
    def exhausted(self) -> bool:
        return len(self.known) >= MOST_EVALUATIONS


def solve(problem: Problem) -> Solution | None:
    """Return the best plan found; None if none was found that fits into memory."""
    tables = StageTables(problem)
    scores = _Scores(tables)
    random_numbers = random.Random(0)
    best: Choices | None = None
    for start in _starts(tables):
        found = _descend(start, scores)
        for _ in range(NUM_KICKS):
            if scores.exhausted:
                break
            kicked = _descend(_kick(found, tables, random_numbers), scores)
            if scores.of(kicked) < scores.of(found):
                found = kicked
        if best is None or scores.of(found) < scores.of(best):
            best = found
    if best is None or math.isinf(scores.of(best)):
        return None
    return Solution(
        solver="local-search",
        stages=best,
        value_ms=scores.of(best),
        bound_ms=min(work_bound_ms(tables), scores.of(best)),
        space=space_of(problem),
        evaluated=len(scores.known),
    )


def work_bound_ms(tables: StageTables) -> float:
    """Return a time that no plan beats: all layers at their fastest, spread evenly over all devices."""
    problem = tables.problem
    whole = tables.size
    fastest_ms = min(
        float(times.forward_ms[0, whole] + times.backward_ms[0, whole])
        for times in tables.times.values()
    )
    # What each layer adds to those before it, not a stage of its own, which may build maps again.
    added_ms = [np.diff(t.forward_ms[0] + t.backward_ms[0]) for t in tables.times.values()]
    layers_ms = float(np.min(added_ms, axis=0).sum())
    return problem.num_microbatches * min(fastest_ms, layers_ms) / problem.num_devices


def _starts(tables: StageTables) -> Iterator[Choices]:
    """Yield plans to start from: one stage on all devices, one device a stage in both orders, one device."""
    size, groups = tables.size, tables.problem.groups
    everything = tuple(len(group.slots) for group in groups)
    yield (StageChoice(0, size, everything),)
    singles = [unit(place, len(groups)) for place, n in enumerate(everything) for _ in range(n)]
    for order in (singles, singles[::-1]):
        count = min(len(order), size)
        edges = [size * i // count for i in range(count + 1)]
        yield tuple(StageChoice(edges[i], edges[i + 1], order[i]) for i in range(count))
    for place in range(len(groups)):
        yield (StageChoice(0, size, unit(place, len(groups))),)


def _descend(choices: Choices, scores: _Scores) -> Choices:
    """Take the best move until none helps."""
    while not scores.exhausted:
        better = min(moves(choices, scores.tables), key=scores.of, default=choices)
        if not scores.of(better) < scores.of(choices):
            break
        choices = better
    return choices


def _kick(choices: Choices, tables: StageTables, random_numbers: random.Random) -> Choices:
    for _ in range(KICK_LENGTH):
        around = list(moves(choices, tables))
        if around:
            choices = random_numbers.choice(around)
    return choices


def moves(choices: Choices, tables: StageTables) -> Iterator[Choices]:
    """Yield every plan that one move makes of a plan."""
    for index in range(len(choices) - 1):
        yield from _shift(choices, index)
        yield _merge(choices, index)
    for index in range(len(choices)):
        yield from _split(choices, index, tables)
        yield from _change_devices(choices, index, tables)
    for first in range(len(choices)):
        for second in range(first + 1, len(choices)):
            if choices[first].devices != choices[second].devices:
                yield _with(
                    choices, {first: choices[second].devices, second: choices[first].devices}
                )


def _shift(choices: Choices, index: int) -> Iterator[Choices]:
    left, right = choices[index], choices[index + 1]
    for step in SHIFTS:
        for cut in (left.last - step, left.last + step):
            if left.first < cut < right.last:
                pair = (
                    StageChoice(left.first, cut, left.devices),
                    StageChoice(cut, right.last, right.devices),
                )
                yield (*choices[:index], *pair, *choices[index + 2 :])


def _merge(choices: Choices, index: int) -> Choices:
    left, right = choices[index], choices[index + 1]
    devices = plus(left.devices, right.devices)
    return (
        *choices[:index],
        StageChoice(left.first, right.last, devices),
        *choices[index + 2 :],
    )


def _split(choices: Choices, index: int, tables: StageTables) -> Iterator[Choices]:
    """Halve a stage's layers; one half gets one of its devices or an idle one, the other the rest."""
    stage = choices[index]
    if stage.last - stage.first < 2:
        return
    middle = (stage.first + stage.last) // 2
    idle = _idle(choices, tables)
    for place in range(len(idle)):
        one = unit(place, len(idle))
        pairs = []
        if idle[place]:
            pairs.append((one, stage.devices))
        if stage.devices[place] and sum(stage.devices) > 1:
            pairs.append((one, minus(stage.devices, one)))
        for small, rest in pairs:
            for front, back in ((small, rest), (rest, small)):
                halves = (
                    StageChoice(stage.first, middle, front),
                    StageChoice(middle, stage.last, back),
                )
                yield (*choices[:index], *halves, *choices[index + 1 :])


def _change_devices(choices: Choices, index: int, tables: StageTables) -> Iterator[Choices]:
    """Give the stage an idle device, or one of another stage's, or take one away."""
    devices, idle = choices[index].devices, _idle(choices, tables)
    for place in range(len(idle)):
        one = unit(place, len(idle))
        if idle[place]:
            yield _with(choices, {index: plus(devices, one)})
        if devices[place] and sum(devices) > 1:
            yield _with(choices, {index: minus(devices, one)})
            for other in range(len(choices)):
                if other != index:
                    given = plus(choices[other].devices, one)
                    yield _with(choices, {index: minus(devices, one), other: given})


def _with(choices: Choices, devices: dict[int, Devices]) -> Choices:
    return tuple(
        StageChoice(choice.first, choice.last, devices.get(index, choice.devices))
        for index, choice in enumerate(choices)
    )


def _idle(choices: Choices, tables: StageTables) -> Devices:
    free = tuple(len(group.slots) for group in tables.problem.groups)
    for choice in choices:
        free = minus(free, choice.devices)
    return free
