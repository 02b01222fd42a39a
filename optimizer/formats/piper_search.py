"""The exact optimum under cost model `piper`: stages, degrees, replicas and every node's option at once.

Piper itself chooses the options greedily; here the choice is exact (options.py), and so is the search over
stages (stage_space.py). Where nothing fits into memory, the same search finds the least memory that would do.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stagewright.document import InputError
from stagewright.optimizer.ideals import TooManyIdealsError

from .options import Front, Fronts, Item
from .piper import Model, Stage, units_in_flight
from .stage_space import Chosen, Floats, StageSpace, least_maximum, stage_space

SPACE = (
    "every split into contiguous stages, every tensor-parallel degree of the file, every number of replicas "
    "that divides the batch, every choice of each node's option"
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the user leaves out of the search."""

    most_replicas: int | None = None
    """Of one stage."""
    most_tensor_parallel: int | None = None
    recomputation: bool = True
    """False: every node takes its plain option."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The best plan; without stages if none fits into memory."""

    stages: tuple[Stage, ...]
    seconds_per_sample: float
    """Of the slowest stage; infinite if nothing fits."""
    least_memory_bytes: float | None
    """If nothing fits into memory: the memory per device with which something would; None if none would."""


def plan(model: Model, limits: Limits | None = None) -> Planned:
    """Return the optimum.

    Raises:
        InputError: the graph branches too much for an exact search.
    """
    limits = limits or Limits()
    try:
        space = _space(model, limits)
    except TooManyIdealsError as error:
        raise InputError(f"cost model piper: {error}; contract the graph first") from None
    tables = {
        degree: _Sums(model, space, degree) for degree in sorted({t for t, _ in space.choices})
    }
    pricing = _Pricing(model, space, tables, limits)
    best = least_maximum(space, pricing.seconds())
    if best is None:
        least = least_maximum(space, pricing.memory())
        return Planned(
            stages=(),
            seconds_per_sample=float("inf"),
            least_memory_bytes=None if least is None else least[0],
        )
    value, chosen = best
    stages = tuple(pricing.stage(choice) for choice in chosen)
    scored = max(model.stage_seconds(stage) for stage in stages)
    assert abs(scored - value) <= 1e-9 * value, (scored, value)
    return Planned(stages=stages, seconds_per_sample=scored, least_memory_bytes=None)


def _space(model: Model, limits: Limits) -> StageSpace:
    most_replicas = min(model.samples_per_batch, model.num_devices)
    degrees = [t for t in model.degrees if t <= (limits.most_tensor_parallel or t)]
    replicas = [
        d
        for d in range(1, min(most_replicas, limits.most_replicas or most_replicas) + 1)
        if model.samples_per_batch % d == 0
    ]
    return stage_space(
        len(model.nodes),
        tuple((edge.source, edge.target) for edge in model.edges),
        num_devices=model.num_devices,
        most_replicas=most_replicas,
        choices=tuple((t, d) for t in degrees for d in replicas if t * d <= model.num_devices),
    )


class _Sums:
    """For one tensor-parallel degree: the sums of all stages with plain options."""

    def __init__(self, model: Model, space: StageSpace, degree: int) -> None:
        nodes = space.nodes
        has = np.array([degree in node.options for node in model.nodes])
        self.possible: npt.NDArray[np.bool_] = np.logical_not(nodes[:, ~has].any(axis=1))
        plain = [
            node.options[degree][0] if degree in node.options else None for node in model.nodes
        ]
        columns = [
            (0.0,) * 4
            if option is None
            else (
                option.seconds_per_sample,
                4 * option.parameter_bytes / model.samples_per_batch / model.bandwidth_bytes_per_s,
                option.bytes_per_unit,
                option.fixed_bytes,
            )
            for option in plain
        ]
        alpha, self.beta, self.bytes_per_unit, self.fixed_bytes = (nodes @ np.array(columns)).T
        self.alpha: Floats = alpha + _cut_seconds(model, nodes, degree)


def _cut_seconds(model: Model, nodes: npt.NDArray[np.bool_], degree: int) -> Floats:
    """Return what the cut edges of every stage cost with plain options."""
    seconds = np.zeros(len(nodes))
    for edge in model.edges:
        source, target = model.nodes[edge.source], model.nodes[edge.target]
        in_source, in_target = nodes[:, edge.source], nodes[:, edge.target]
        if degree in source.options:
            sync = source.options[degree][0].sync_out_bytes[str(target.id)]
            seconds += (in_source & ~in_target) * (edge.num_bytes + sync)
        if degree in target.options:
            sync = target.options[degree][0].sync_in_bytes[str(source.id)]
            seconds += (in_target & ~in_source) * (edge.num_bytes + sync)
    return 2 * seconds / model.bandwidth_bytes_per_s


class _Pricing:
    """What every stage costs, with its best options."""

    def __init__(
        self, model: Model, space: StageSpace, sums: Mapping[int, _Sums], limits: Limits
    ) -> None:
        self._model = model
        self._space = space
        self._sums = sums
        self._recomputation = limits.recomputation
        self._nodes = space.nodes
        # Towards the first layers, so that stages with the same end share the fronts of their last nodes.
        later_first = sorted(range(len(model.nodes)), key=_depths(model).__getitem__, reverse=True)
        self._order = tuple(later_first)
        self._same_everywhere: dict[tuple[int, int], Item] = {}
        """By node and degree: the items that are the same in every stage."""
        self._fronts = {t: Fronts(space.most_replicas, space.num_units(1)) for t in sums}

    def seconds(self) -> dict[tuple[int, int], Floats]:
        """Return the time per sample of all stages, infinite where they do not fit into memory."""
        found = {
            (t, d): np.full((len(self._nodes), self._space.num_units(d)), np.inf)
            for t, d in self._space.choices
        }
        replicas = {t: [d for degree, d in self._space.choices if degree == t] for t in self._sums}
        for degree, sums in self._sums.items():
            for stage in np.flatnonzero(sums.possible):
                front = self._front(int(stage), degree)
                fits = self._fits(front)
                if not fits.any():
                    continue
                same_beta = bool((front.beta == front.beta[0]).all())
                # With one gradient sum for all choices, the best choice is the same for all d.
                alpha = np.where(fits, front.alpha[:, None], np.inf).min(axis=0)
                for d in replicas[degree]:
                    num_units = self._space.num_units(d)
                    if same_beta:
                        row = (alpha[:num_units] + front.beta[0] * (d - 1)) / d
                    else:
                        time = (front.alpha + front.beta * (d - 1)) / d
                        row = np.where(fits[:, :num_units], time[:, None], np.inf).min(axis=0)
                    found[degree, d][stage] = row
        return found

    def memory(self) -> dict[tuple[int, int], Floats]:
        """Return the least memory of all stages, whatever the time."""
        units = np.arange(1, self._space.num_units(1) + 1)
        found = {}
        for degree, sums in self._sums.items():
            needed = np.full((len(self._nodes), len(units)), np.inf)
            needed[sums.possible] = 0.0
            for position, node in enumerate(self._model.nodes):
                options = node.options.get(degree, ())[: None if self._recomputation else 1]
                if options:
                    per_unit = [o.bytes_per_unit * units + o.fixed_bytes for o in options]
                    needed[self._nodes[:, position]] += np.min(per_unit, axis=0)
            for t, d in self._space.choices:
                if t == degree:
                    found[t, d] = needed[:, : self._space.num_units(d)]
        return found

    def stage(self, chosen: Chosen) -> Stage:
        """Return a chosen stage with its options."""
        front = self._front(chosen.stage, chosen.tensor_parallel)
        d = chosen.replicas
        units = units_in_flight(d, chosen.replicas_behind)
        fits = self._fits(front)[:, units - 1]
        time = np.where(fits, front.alpha + front.beta * (d - 1), np.inf)
        options = front.options[int(np.argmin(time))]
        option_of = dict(zip(self._held(chosen.stage), options.tolist(), strict=True))
        nodes = tuple(sorted(option_of))
        return Stage(
            nodes=nodes,
            tensor_parallel=chosen.tensor_parallel,
            replicas=d,
            options=tuple(option_of[node] for node in nodes),
        )

    def _held(self, stage: int) -> list[int]:
        return [node for node in self._order if self._nodes[stage, node]]

    def _fits(self, front: Front) -> npt.NDArray[np.bool_]:
        """Return the (choices, units in flight) table of what fits into memory."""
        units = np.arange(1, self._space.num_units(1) + 1)
        needed = front.bytes_per_unit[:, None] * units + front.fixed_bytes[:, None]
        return needed <= self._model.memory_bytes

    def _front(self, stage: int, degree: int) -> Front:
        """Return the choices of a stage's options with their whole sums."""
        held = self._held(stage)
        front = self._fronts[degree].of(tuple(self._item(stage, node, degree) for node in held))
        sums = self._sums[degree]
        return Front(
            front.alpha + sums.alpha[stage],
            front.beta + sums.beta[stage],
            front.bytes_per_unit + sums.bytes_per_unit[stage],
            front.fixed_bytes + sums.fixed_bytes[stage],
            front.options,
        )

    def _item(self, stage: int, node: int, degree: int) -> Item:
        known = self._same_everywhere.get((node, degree))
        if known is not None:
            return known
        model = self._model
        options = model.nodes[node].options[degree][: None if self._recomputation else 1]
        per_byte = 1 / model.bandwidth_bytes_per_s
        rows = []
        depends_on_stage = False
        for option in options:
            plain = options[0]
            sync = 0.0
            if (option.sync_in_bytes, option.sync_out_bytes) != (
                plain.sync_in_bytes,
                plain.sync_out_bytes,
            ):
                depends_on_stage = True
                sync = self._sync_bytes(stage, node, option.sync_in_bytes, option.sync_out_bytes)
                sync -= self._sync_bytes(stage, node, plain.sync_in_bytes, plain.sync_out_bytes)
            gradient_bytes = 4 * (option.parameter_bytes - plain.parameter_bytes)
            rows.append(
                (
                    option.seconds_per_sample - plain.seconds_per_sample + 2 * sync * per_byte,
                    gradient_bytes / model.samples_per_batch * per_byte,
                    option.bytes_per_unit - plain.bytes_per_unit,
                    option.fixed_bytes - plain.fixed_bytes,
                )
            )
        item = Item(node, tuple(zip(*rows, strict=True)))
        if not depends_on_stage:
            self._same_everywhere[node, degree] = item
        return item

    def _sync_bytes(
        self, stage: int, node: int, in_bytes: Mapping[str, float], out_bytes: Mapping[str, float]
    ) -> float:
        """Return what a node of a stage synchronises at the stage's borders."""
        total = 0.0
        for edge in self._model.edges:
            if edge.source == node and not self._nodes[stage, edge.target]:
                total += out_bytes[str(self._model.nodes[edge.target].id)]
            elif edge.target == node and not self._nodes[stage, edge.source]:
                total += in_bytes[str(self._model.nodes[edge.source].id)]
        return total


def _depths(model: Model) -> list[int]:
    """Return for every node the number of edges on the longest path to it."""
    depths = [0] * len(model.nodes)
    for _ in model.nodes:
        for edge in model.edges:
            depths[edge.target] = max(depths[edge.target], depths[edge.source] + 1)
    return depths
