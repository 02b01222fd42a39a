"""Maps that layers of a sparse model share: which layers use each, and what building it takes.

MinkowskiEngine builds coordinate maps, and kernel maps over them, when a first layer asks for one, and keeps
them in the tensors' coordinate manager. A stage behind a cut has a manager of its own: it inserts the
coordinates that it receives and builds again what its layers use. So each map is built apart, in a new
manager with the coordinates of the micro-batch; its layers are those whose calls were seen to use it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from stagewright.graph import LayerCost, LayerNode, MapCost, SharedMap
from stagewright.profiler.tracing.trace import TracedModel
from stagewright.profiler.tracing.voxels import engine, is_engine_layer, is_sparse

from .clock import Clock
from .row import interquartile_range
from .step import LOSS, Batch, Walk


@dataclass(frozen=True)
class Coordinates:
    """A coordinate map, by its place among those of the micro-batch, in the order in which they were met."""

    number: int


@dataclass(frozen=True)
class Kernel:
    """A kernel map. A transposed layer uses that of the way down, turned round."""

    fine: Coordinates
    coarse: Coordinates
    arguments: tuple[Any, ...]
    """As the engine takes them: size, stride, dilation, region type; whether it is a pooling's."""


Map = Coordinates | Kernel


@dataclass
class _Seen:
    """The maps of one micro-batch, found while a walk runs."""

    traced: TracedModel
    inserted: list[tuple[Tensor, list[int], str]] = field(default_factory=list)
    """What to insert for each coordinate map."""
    users: dict[Map, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Of each map, the places of the layers."""
    _numbers: dict[tuple[int, Any], Coordinates] = field(default_factory=dict)
    _managers: list[object] = field(default_factory=list)
    """Kept alive, so that their numbers stay theirs."""
    _of_layer: dict[str, Coordinates] = field(default_factory=dict)
    _called: list[Kernel] = field(default_factory=list)

    def coordinates_of(self, value: Any) -> Coordinates:
        stride, name = value.coordinate_map_key.get_key()
        key = (id(value.coordinate_manager), (tuple(stride), name))
        if key not in self._numbers:
            self._numbers[key] = Coordinates(len(self.inserted))
            self.inserted.append((value.C, list(stride), name))
            self._managers.append(value.coordinate_manager)
        return self._numbers[key]

    def called(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Note the kernel map of a call; a convolution that is a matrix product has none."""
        if not (is_sparse(inputs[0]) and is_sparse(output)) or getattr(module, "use_mm", False):
            return
        shape: Any = module.kernel_generator
        ends = [self.coordinates_of(inputs[0]), self.coordinates_of(output)]
        if getattr(module, "is_transpose", False):
            ends.reverse()
        arguments = (
            *(tuple(n) for n in (shape.kernel_size, shape.kernel_stride, shape.kernel_dilation)),
            shape.region_type,
            hasattr(module, "pooling_mode"),
        )
        self._called.append(Kernel(ends[0], ends[1], arguments))

    def see(self, place: int, value: Any) -> None:
        """Note the maps of a layer: of its values, and of the calls since the layer before."""
        if place == LOSS:
            return
        layer = self.traced.layers[place]
        own = [self._of_layer[name] for name in layer.inputs if name in self._of_layer]
        if is_sparse(value):
            self._of_layer[layer.name] = self.coordinates_of(value)
            own.append(self._of_layer[layer.name])
        used: list[Map] = [*own, *self._called]
        for one in used:
            self.users[one].add(place)
        self._called.clear()


class MapTimes:
    """The building of shared maps at one micro-batch size; models without sparse tensors have none."""

    def __init__(self, traced: TracedModel, batches: Sequence[Batch], clock: Clock) -> None:
        self._traced, self._batches, self._clock = traced, batches, clock
        self._seen: list[_Seen] = []
        self.read_ms: dict[Map, list[float]] = defaultdict(list)

    def find(self) -> None:
        """Run each micro-batch forward and see which maps there are."""
        modules = [
            module
            for module in self._traced.model.modules()
            if is_engine_layer(module) and hasattr(module, "kernel_generator")
        ]
        if not modules:
            return
        walk = Walk(self._traced)
        for batch in self._batches:
            seen = _Seen(self._traced)
            hooks = [module.register_forward_hook(seen.called) for module in modules]
            try:
                walk.saved_bytes(batch, seen.see)
            finally:
                for hook in hooks:
                    hook.remove()
            self._seen.append(seen)

    @property
    def users(self) -> Mapping[Map, tuple[int, ...]]:
        """The places of the layers that use each shared map."""
        if not self._seen:
            return {}
        found = self._seen[0].users.items()
        return {used: tuple(sorted(places)) for used, places in found if len(places) > 1}

    def repeat(self, turn: int) -> None:
        """Build each shared map of one of the micro-batches, in turns."""
        for used in self.users:
            self.read_ms[used].append(self._build_ms(used, self._seen[turn % len(self._seen)]))

    def _build_ms(self, used: Map, seen: _Seen) -> float:
        library: Any = engine()
        ends = [used] if isinstance(used, Coordinates) else [used.fine, used.coarse]
        parts = {end: seen.inserted[end.number] for end in ends}
        start = self._clock.now()
        manager = library.CoordinateManager(D=seen.inserted[0][0].shape[1] - 1)
        keys = {end: manager.insert_and_map(*part)[0] for end, part in parts.items()}
        moments = [start, self._clock.now()]
        if isinstance(used, Kernel):
            *shape, region, is_pool = used.arguments
            none = torch.IntTensor()
            for _ in range(2):  # The second time it is there: reading it takes the rest.
                manager._manager.kernel_map(
                    keys[used.fine], keys[used.coarse], *shape, region, none, False, is_pool
                )
                moments.append(self._clock.now())
        self._clock.settle()
        spans = [self._clock.between(*pair) for pair in pairwise(moments)]
        return spans[0] if len(spans) == 1 else max(0.0, spans[1] - spans[2])


def shared_maps(
    layers: Sequence[LayerNode],
    costs: Mapping[str, Sequence[LayerCost]],
    times: Sequence[MapTimes],
    slowdown: float,
) -> tuple[SharedMap, ...]:
    """Return the maps with their costs, given those of the layers and the times by micro-batch size.

    The forward of the first layer that uses a map was measured with its building, so it is no shorter; where
    noise says so, the building is taken for as long.
    """
    found = []
    left = {(name, c.batch_size): c.forward_ms for name, own in costs.items() for c in own}
    for used, places in times[0].users.items():
        names = tuple(layers[place].name for place in places)
        by_size = []
        for one, cost in zip(times, costs[names[0]], strict=True):
            read = [ms * slowdown for ms in one.read_ms[used]]
            key = (names[0], cost.batch_size)
            build_ms = min(float(np.median(read)), left[key])
            left[key] -= build_ms
            by_size.append(
                MapCost(
                    batch_size=cost.batch_size,
                    build_ms=build_ms,
                    spread_ms=interquartile_range(read),
                )
            )
        kind: Literal["coordinates", "kernel"] = (
            "coordinates" if isinstance(used, Coordinates) else "kernel"
        )
        found.append(SharedMap(kind=kind, layers=names, costs=tuple(by_size)))
    return tuple(found)
