"""A lower bound for every cut of a branching graph, by constraint programming (CP-SAT).

Stages are places, counted from the last one; prefix literals say that a unit of layers lies at a place or
behind it, and what needs it lies no earlier [Tarnawski et al., NeurIPS 2020, section 5]. Each place that is
used has a device type with a number of replicas, as in fluid.py; the replicas from it to the end say how many
units are in flight. A value is received at a place if a user is there and its maker is before, and sent from
where it is made if a user is behind; of n + 1 stages in a row two are on different servers of at most n
devices, so a message between them goes far. The load of a place is its layers' and its messages'. All numbers
are rounded down, so the bound holds. Left out: latencies of messages, windows, working memory.

It needs Google OR-tools: pip install 'stagewright[ortools]'. Without it there is no such bound.
"""

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from stagewright.cluster import Link
from stagewright.optimizer.borders import spec_of
from stagewright.optimizer.costs.cost import FloatArray, has_flush, message_bytes
from stagewright.optimizer.problem import Problem
from stagewright.value import VoxelsSpec, tensors_of

from .fluid import Fluid, Layers
from .labels.chain import replica_steps

if TYPE_CHECKING:
    from ortools.sat.python.cp_model import IntVar, LinearExpr

METHOD = "a constraint programme over all ideals, without latencies of messages"
MOST_LITERALS = 5_000
"""Units of layers x stages; with more the bound takes minutes."""
MOST_TERMS = 200_000
"""The same x kinds of stages: adding them takes a second or two."""
EACH_LEVEL = 16
"""Up to so many units in flight are told apart; of more, by a fifth."""
PARTS_OF_MS = 10_000
SPARE = 10_000
"""Parts by which a sum of numbers that are rounded down may be below the number."""
BYTES = 2**14
"""Memory is counted in these."""
LEVEL = 2
"""Of the linear relaxation: all that is linear."""
ENOUGH = 1e-3
"""The search ends when bound and best value are so close."""


class _Value(NamedTuple):
    """What one layer makes for layers of other units."""

    maker: int
    users: tuple[int, ...]
    forward_bytes: int
    backward_bytes: int


def is_possible(problem: Problem, *, mixes_types: bool) -> bool:
    """Return whether there is such a bound: few enough stages and layers, and OR-tools.

    Args:
        mixes_types: whether a stage may have replicas of several types.
    """
    mixes = mixes_types and len(problem.inputs.graphs) > 1 and not problem.constraints.straight
    if mixes or problem.objective not in ("step-time", "throughput"):
        return False
    size = num_places(problem) * len(problem.units.layers)
    if size > MOST_LITERALS or find_spec("ortools") is None:
        return False
    limit = 1 if problem.constraints.straight else problem.num_microbatches
    names = [group.device_type for group in problem.groups for _ in group.slots]
    counts = [min(limit, names.count(name)) for name in problem.inputs.graphs]
    kinds = sum(len(replica_steps(problem.num_microbatches, most)[0]) for most in counts if most)
    return size * kinds <= MOST_TERMS


def num_places(problem: Problem) -> int:
    """Return the most stages that a plan may have."""
    most = problem.max_stages or problem.num_devices
    return min(problem.num_devices, most, len(problem.units.layers))


def constraint_bound(problem: Problem, known_ms: float, value_ms: float, seconds: float) -> float:
    """Return what no plan's time is below, whatever its cuts; at most value_ms.

    Args:
        known_ms: a lower bound.
        value_ms: of a plan.
        seconds: to search at most.

    Raises:
        InputError: something that the bound depends on was not measured.
    """
    from ortools.sat.python import cp_model

    programme = _Programme(problem, known_ms, value_ms)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.linearization_level = LEVEL
    solver.parameters.relative_gap_limit = ENOUGH
    # OR-tools 9.15 cuts off solutions without this, google/or-tools issue 5293.
    solver.parameters.presolve_inclusion_work_limit = 0
    if solver.solve(programme.model) == cp_model.INFEASIBLE:
        return value_ms
    return min(value_ms, math.floor(solver.best_objective_bound) / PARTS_OF_MS)


class _Programme:
    """The constraint programme of one problem."""

    def __init__(self, problem: Problem, known_ms: float, value_ms: float) -> None:
        from ortools.sat.python import cp_model

        self.problem, self.model = problem, cp_model.CpModel()
        self.units = problem.units
        self.num_places = num_places(problem)
        self.values = _values(problem)
        self.fluid = Fluid(problem, Layers(problem))
        self.kinds = self.fluid.kinds
        self.most = math.ceil(value_ms * PARTS_OF_MS)
        self.slowest = self._time("slowest")
        self.behind = [self._literals(f"{unit} behind") for unit in range(len(self.units.layers))]
        self.placed, self.used = self._placed(), self._literals("used")
        self.chosen = [self._literals(f"kind {kind}") for kind in range(len(self.kinds.replicas))]
        self.up_to = [self._replicas_up_to(place) for place in range(self.num_places)]
        self._count_devices()
        self.far = self._far()
        parts = [self._place(place) for place in range(self.num_places)]
        counted = [self.slowest, *(parts if has_flush(problem.objective) else ())]
        whole = cp_model.LinearExpr.sum(counted)
        self.model.add(whole <= self.most)
        self.model.add(whole >= math.floor(known_ms * PARTS_OF_MS) - SPARE)
        self.model.minimize(whole)

    def _time(self, name: str) -> "IntVar":
        return self.model.new_int_var(0, self.most, name)

    def _literals(self, name: str) -> "list[IntVar]":
        return [self.model.new_bool_var(f"{name} {place}") for place in range(self.num_places)]

    def _placed(self) -> "list[list[IntVar]]":
        """Return literals [unit][place]: the unit is there."""
        placed = []
        for unit, behind in enumerate(self.behind):
            own = self._literals(f"{unit} at")
            self.model.add(own[0] == behind[0])
            for place in range(1, self.num_places):
                self.model.add(own[place] == behind[place] - behind[place - 1])
            self.model.add(behind[-1] == 1)
            placed.append(own)
        for before, after in self.units.edges:
            for place in range(self.num_places - 1):
                self.model.add_implication(self.behind[before][place], self.behind[after][place])
        return placed

    def _replicas_up_to(self, place: int) -> "LinearExpr":
        """Choose a place's kind if it is used; return the replicas from it to the end."""
        used = self.used[place]
        self.model.add_max_equality(used, [own[place] for own in self.placed])
        if place:
            self.model.add_implication(used, self.used[place - 1])
        self.model.add(_weighted([own[place] for own in self.chosen]) == used)
        until = [own[p] for own in self.chosen for p in range(place + 1)]
        counts = np.repeat(self.kinds.replicas, place + 1).tolist()
        return _weighted(until, counts)

    def _count_devices(self) -> None:
        for which, count in enumerate(self.fluid.layers.counts.tolist()):
            own = np.flatnonzero(self.kinds.device_type == which).tolist()
            literals = [literal for kind in own for literal in self.chosen[kind]]
            counts = np.repeat(self.kinds.replicas[own], self.num_places).tolist()
            self.model.add(_weighted(literals, counts) <= count)

    def _far(self) -> "list[IntVar] | None":
        """Return literals [place]: its messages come from another server; None if there is only one."""
        if len(self.problem.all_servers) == 1:
            return None
        far = self._literals("far")
        sizes = dict.fromkeys(self.problem.all_servers, 0)
        for group in self.problem.groups:
            sizes[group.server] += len(group.slots)
        most = max(sizes.values())
        for place in range(self.num_places - most):
            self.model.add_bool_or([*far[place : place + most], ~self.used[place + most]])
        return far

    def _place(self, place: int) -> "LinearExpr":
        """Add what one place's load and memory are; return its part of the sum of times."""
        time = self._time(f"time {place}")
        received = [self._received(value, place) for value in self.values]
        messages = self._messages(place, received)
        for kind, own in enumerate(self.chosen):
            load = self._sum(self.fluid.need_ms[kind] * PARTS_OF_MS, place)
            self.model.add(load <= self.slowest).only_enforce_if(own[place])
            alone = self._sum(self.fluid.time_ms[kind] * PARTS_OF_MS, place)
            self.model.add(time >= alone).only_enforce_if(own[place])
            for message in messages:
                rounds = int(self.kinds.dealt[kind])
                self.model.add(rounds * message <= self.slowest).only_enforce_if(own[place])
        if self.problem.count_memory:
            self._limit_memory(place, received)
        return time + messages[0] + messages[1]

    def _sum(self, of_layers: FloatArray, place: int) -> "LinearExpr":
        """Return the sum over the layers at a place; the loss is at the last one."""
        whole = [int(of_layers[list(layers)].sum()) for layers in self.units.layers]
        here = [own[place] for own in self.placed]
        return _weighted(here, whole) + (int(of_layers[-1]) if place == 0 else 0)

    def _limit_memory(self, place: int, received: "list[IntVar]") -> None:
        """Let a place hold as many units as its kind and the replicas from it to the end demand."""
        problem = self.problem
        num, sent = problem.num_microbatches, [self._sent(value, place) for value in self.values]
        dealt = [-(-num // count) for count in self.kinds.replicas.tolist()]
        keeps_all = problem.schedule == "gpipe"
        most = max(dealt) if keeps_all else min(max(dealt), problem.num_devices + 1)
        levels = _levels(most)
        holds = [self.model.new_bool_var("") for _ in levels]
        self.model.add(_weighted(holds) == self.used[place])
        for literal, units, above in zip(holds, levels, [*levels[1:], most + 1], strict=True):
            for kind, own in enumerate(self.chosen):
                if above > dealt[kind]:
                    continue
                both = [own[place], literal]
                if keeps_all:
                    self.model.add_bool_or([~one for one in both])
                else:
                    enough = self.up_to[place] * dealt[kind] <= (above - 1) * num
                    self.model.add(enough).only_enforce_if(both)
            for which, name in enumerate(self.fluid.layers.types):
                types = [
                    own[place]
                    for own, kind in zip(self.chosen, self.kinds.device_type, strict=True)
                    if kind == which
                ]
                limit = math.ceil(problem.memory_limit(name) / BYTES)
                on_type = self.model.new_bool_var("")
                self.model.add(_weighted(types) == on_type)
                held = self._held(which, place, units, received, sent)
                self.model.add(held <= limit).only_enforce_if(literal, on_type)

    def _held(
        self, which: int, place: int, units: int, received: "list[IntVar]", sent: "list[IntVar]"
    ) -> "LinearExpr":
        again = self.problem.constraints.allow_recompute
        saved_units = np.array([1.0 if again else float(units)])
        held = self.fluid.layers.held_bytes(saved_units)[which, 0] / BYTES
        schedule = self.problem.schedule
        taken, given = units + message_bytes(schedule, 1.0, 0.0, 0.0), float(units)
        back, arriving = (
            message_bytes(schedule, 0.0, 1.0, 0.0),
            message_bytes(schedule, 0.0, 0.0, 1.0),
        )
        into = [
            int((taken * v.forward_bytes + back * v.backward_bytes) / BYTES) for v in self.values
        ]
        out = [
            int((given * v.forward_bytes + arriving * v.backward_bytes) / BYTES)
            for v in self.values
        ]
        return self._sum(held, place) + _weighted(received, into) + _weighted(sent, out)

    def _received(self, value: _Value, place: int) -> "IntVar":
        """Return whether a place receives a value."""
        here = self.model.new_bool_var("")
        behind = self.behind[value.maker][place]
        for user in value.users:
            # The user is here, and the maker neither here nor behind.
            self.model.add_bool_or([~self.placed[user][place], behind, here])
        return here

    def _sent(self, value: _Value, place: int) -> "IntVar":
        """Return whether a place sends a value."""
        here = self.model.new_bool_var("")
        for user in value.users:
            self.model.add_bool_or(
                [~self.placed[value.maker][place], self.placed[user][place], here]
            )
        return here

    def _messages(self, place: int, received: "list[IntVar]") -> "list[IntVar]":
        """Return the times of a place's messages forward and backward."""
        names = sorted(self.problem.all_servers)
        link = self.problem.inputs.cluster.link_between
        between = [link(a, b) for a in names for b in names if a != b]
        inside = [link(a, a) for a in names]
        times = [self._time(f"{direction} {place}") for direction in ("forward", "backward")]
        forward = [value.forward_bytes for value in self.values]
        backward = [value.backward_bytes for value in self.values]
        for time, sizes in zip(times, (forward, backward), strict=True):
            self.model.add(time >= _linear(sizes, [*inside, *between], received))
            if self.far is not None:
                far = _linear(sizes, between, received)
                self.model.add(time >= far).only_enforce_if(self.far[place])
        return times


def _levels(most: int) -> list[int]:
    """Return rising numbers of units in flight, up to `most`: what is between two counts as the lower."""
    levels = [1]
    while levels[-1] < most:
        levels.append(levels[-1] + max(1, (levels[-1] - EACH_LEVEL) // 5 + 1))
    return levels[:-1] if levels[-1] > most else levels


def _linear(sizes: Sequence[int], links: Sequence[Link], received: "list[IntVar]") -> "LinearExpr":
    """Return what some values take over the fastest of some links."""
    per_byte = PARTS_OF_MS * 1e3 / max(link.bandwidth_bytes_per_s for link in links)
    return _weighted(received, [int(size * per_byte) for size in sizes])


def _weighted(literals: "list[IntVar]", weights: Sequence[int] | None = None) -> "LinearExpr":
    from ortools.sat.python.cp_model import LinearExpr

    return LinearExpr.weighted_sum(literals, weights or [1] * len(literals))


def _values(problem: Problem) -> list[_Value]:
    """Return what units make for others."""
    unit_of = {layer: unit for unit, own in enumerate(problem.units.layers) for layer in own}
    users: dict[str, set[int]] = {}
    for index, layer in enumerate(problem.chain):
        for name in layer.inputs:
            users.setdefault(name, set()).add(unit_of[index])
    found = []
    for index, layer in enumerate(problem.chain):
        spec = spec_of(layer, problem.microbatch_size)
        others = tuple(sorted(users.get(layer.name, set()) - {unit_of[index]}))
        if others and not isinstance(spec, VoxelsSpec):
            tensors = list(tensors_of(spec))
            forward = sum(t.bytes_at(problem.microbatch_size) for t in tensors)
            trained = [t for t in tensors if t.requires_grad]
            backward = sum(t.bytes_at(problem.microbatch_size) for t in trained)
            found.append(_Value(unit_of[index], others, forward, backward))
    return found
