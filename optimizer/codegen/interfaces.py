"""What each stage of a plan receives and sends, from the plan and its layer graph."""

from collections.abc import Sequence

from stagewright.document import InputError
from stagewright.graph import LayerGraph
from stagewright.optimizer.borders import borders_of, inputs_of
from stagewright.plan import Border, Plan

from .stage import StageInterface

MAKE_AGAIN = "make the plan again with `stagewright optimize`"


def stage_interfaces(plan: Plan, graph: LayerGraph, place: str) -> tuple[StageInterface, ...]:
    """Return what each stage holds, receives and sends; values in the graph's order.

    Args:
        place: the plan's file, for messages.

    Raises:
        InputError: the plan is of another model, or its stages or borders do not fit the graph.
    """
    _check(plan, graph, place)
    return interfaces_of(graph, [stage.layers for stage in plan.stages], plan.borders)


def interfaces_of(
    graph: LayerGraph, stage_layers: Sequence[Sequence[str]], borders: Sequence[Border]
) -> tuple[StageInterface, ...]:
    """Return what each stage holds, receives and sends, from its layers' names and its borders."""
    stages = []
    for index, names in enumerate(stage_layers):
        taken = {name for layer in names for name in graph.by_name[layer].inputs}
        if index == len(stage_layers) - 1:
            taken |= set(graph.outputs)
        taken = {name for name in taken if graph.by_name[name].is_input}
        taken |= {v.layer for b in borders if b.target == index for v in b.values}
        sent = {v.layer for b in borders if b.source == index for v in b.values}
        stages.append(
            StageInterface(
                index=index,
                layers=tuple(graph.by_name[name] for name in names),
                inputs=tuple(layer for layer in graph.layers if layer.name in taken),
                outputs=tuple(layer.name for layer in graph.layers if layer.name in sent),
            )
        )
    return tuple(stages)


def _check(plan: Plan, graph: LayerGraph, place: str) -> None:
    if plan.structure_sha256 != graph.model.structure_sha256:
        raise InputError(
            f"{place}: structure_sha256 is {plan.structure_sha256!r}, but the graph of "
            f"{graph.device_type!r} has {graph.model.structure_sha256!r}; {MAKE_AGAIN}"
        )
    names = [stage.layers for stage in plan.stages]
    try:
        borders = borders_of(graph, names, plan.microbatch_size)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    position = {layer.name: index for index, layer in enumerate(graph.layers)}
    for index, layers in enumerate(names):
        if list(layers) != sorted(set(layers), key=position.__getitem__):
            raise InputError(
                f"{place}: the layers of stage {index} are not in the graph's order; {MAKE_AGAIN}"
            )
    if borders != plan.borders:
        raise InputError(
            f"{place}: its borders are not those of its stages in the graph; {MAKE_AGAIN}"
        )
    if inputs_of(graph, plan.microbatch_size) != plan.inputs:
        raise InputError(f"{place}: its inputs are not those of the graph; {MAKE_AGAIN}")
