"""Sparse tensors on borders: a coordinate map reaches a stage once, features only where they are taken.

A stage that receives several sparse tensors in the rows of one coordinate map gets its coordinates with the
first of them, by source stage and then in the graph's order. A stage in which a value only says to which
coordinates a transposed layer returns (`up(x, coordinates=skip)`) gets no features of it.
"""

from collections.abc import Iterable, Sequence

from stagewright.graph import LayerGraph, LayerNode, ModuleOperation
from stagewright.plan import Border
from stagewright.value import (
    MappingSpec,
    SequenceSpec,
    ValueSpec,
    VoxelsSpec,
    references_of,
)

COORDINATES = "coordinates"
"""The keyword of MinkowskiEngine's layers for the value whose coordinates they return to."""
Map = tuple[str, str]
"""A coordinate map: its manager and itself, by the layers that made them."""


def with_needed_parts(
    graph: LayerGraph, stages: Sequence[Sequence[str]], borders: Iterable[Border]
) -> tuple[Border, ...]:
    """Return borders, given by (source, target), whose sparse tensors have the parts that must be sent."""
    received: dict[int, set[Map]] = {}
    slim = []
    for border in borders:
        known = received.setdefault(border.target, set())
        taken = set(features_taken(graph, stages[border.target]))
        if border.target == len(stages) - 1:
            taken |= set(graph.outputs)
        values = []
        for value in border.values:
            spec = _without_known_maps(value.spec, known)
            if isinstance(spec, VoxelsSpec) and value.layer not in taken:
                spec = spec.replace(features=None)
            values.append(value.replace(spec=spec))
        slim.append(border.replace(values=tuple(values)))
    return tuple(slim)


def features_taken(graph: LayerGraph, names: Iterable[str]) -> Iterable[str]:
    """Yield the layers whose values some layers take for more than their coordinates."""
    for name in names:
        yield from taken_by(graph.by_name[name])


def taken_by(layer: LayerNode) -> Iterable[str]:
    """Yield the layers whose values a layer takes for more than their coordinates."""
    is_sparse = isinstance(layer.operation, ModuleOperation) and layer.operation.type.startswith(
        "Minkowski"
    )
    for argument in layer.arguments:
        yield from references_of(argument)
    for key, argument in layer.keyword_arguments.items():
        if not (is_sparse and key == COORDINATES):
            yield from references_of(argument)


def _without_known_maps(spec: ValueSpec, known: set[Map]) -> ValueSpec:
    """Return a specification without the coordinates of known maps; those of the others become known."""
    if isinstance(spec, VoxelsSpec):
        place = (spec.manager, spec.map)
        if place in known:
            return spec.replace(coordinates=None)
        known.add(place)
        return spec
    if isinstance(spec, SequenceSpec):
        return spec.replace(items=tuple(_without_known_maps(item, known) for item in spec.items))
    if isinstance(spec, MappingSpec):
        items = {key: _without_known_maps(item, known) for key, item in spec.items.items()}
        return spec.replace(items=items)
    return spec
