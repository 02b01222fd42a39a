"""What stages hold and what they send: from a layer graph and its cuts to layers, borders and inputs.

A cut is a position in the *chain*: the layers that compute, in the graph's topological order. Not in the
chain are the model's inputs (every stage that takes one loads it itself) and bare parameters and buffers
(AttributeOperation): their value never crosses a border; every stage that uses one holds it itself, so its
name may be in several stages, and a parameter held twice is tied: the runtime sums its gradients.

A value goes straight from the stage that makes it to every later stage that uses it; nothing is relayed.
The model returns from the last stage: a returned value made earlier goes there.
"""

import itertools
from collections.abc import Iterable, Sequence

from stagewright.document import InputError
from stagewright.graph import AttributeOperation, InputOperation, LayerGraph, LayerNode
from stagewright.plan import Border, ModelInput, NamedValue
from stagewright.value import TensorSpec, ValueSpec


def chain_of(graph: LayerGraph) -> tuple[LayerNode, ...]:
    """Return the layers that cuts count: all but inputs and bare parameters.

    Raises:
        InputError: there is none.
    """
    chain = tuple(s for s in graph.steps if not isinstance(s.operation, AttributeOperation))
    if not chain:
        raise InputError(f"model {graph.model.task}: no layer computes; there is nothing to plan")
    return chain


def has_branches(graph: LayerGraph) -> bool:
    """Return whether the layers of the chain have other orders: some layer does not take the one before.

    A bare parameter or an input does not order layers.
    """
    return any(
        before.name not in after.inputs for before, after in itertools.pairwise(chain_of(graph))
    )


def stage_layers(graph: LayerGraph, cuts: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Return each stage's layer names in the graph's order, bare parameters with every stage that uses them.

    Stage s has the chain's layers cuts[s - 1] up to, not including, cuts[s]. A bare parameter or buffer
    that nothing uses goes to the last stage, as does one that the model returns.
    """
    chain = chain_of(graph)
    edges = (0, *cuts, len(chain))
    assert list(edges) == sorted(set(edges)), "cuts must rise strictly inside the chain"
    used_anywhere = {name for layer in graph.layers for name in layer.inputs}
    bare = {s.name for s in graph.steps if isinstance(s.operation, AttributeOperation)}
    stages = []
    for first, last in itertools.pairwise(edges):
        names = {layer.name for layer in chain[first:last]}
        names |= {n for layer in chain[first:last] for n in layer.inputs if n in bare}
        if last == len(chain):
            names |= {name for name in bare if name not in used_anywhere or name in graph.outputs}
        stages.append(tuple(step.name for step in graph.steps if step.name in names))
    return tuple(stages)


def borders_of(
    graph: LayerGraph, stages: Sequence[Sequence[str]], batch_size: int
) -> tuple[Border, ...]:
    """Return what each stage sends to each later one, by (source, target); values in the graph's order.

    Numbers and None are listed where they are used, though no message carries them: they depend on nothing
    but the micro-batch size. batch_size only matters for a graph without specifications (`spec_of`).
    """
    maker = _makers(graph, stages)
    crossing: dict[tuple[int, int], set[str]] = {}
    for target, names in enumerate(stages):
        wanted = [name for layer in names for name in graph.by_name[layer].inputs]
        if target == len(stages) - 1:
            wanted += graph.outputs
        for name in wanted:
            if name in maker and name not in names:
                crossing.setdefault((maker[name], target), set()).add(name)
    return tuple(
        Border(
            source=source,
            target=target,
            values=tuple(
                NamedValue(layer=layer.name, spec=spec_of(layer, batch_size))
                for layer in graph.layers
                if layer.name in names
            ),
        )
        for (source, target), names in sorted(crossing.items())
    )


def inputs_of(graph: LayerGraph, batch_size: int) -> tuple[ModelInput, ...]:
    """Return the values that the model receives, in the graph's order."""
    return tuple(
        ModelInput(layer=layer.name, key=layer.operation.key, spec=spec_of(layer, batch_size))
        for layer in graph.layers
        if isinstance(layer.operation, InputOperation)
    )


def spec_of(layer: LayerNode, batch_size: int) -> ValueSpec:
    """Return what a layer returns; for one that another system profiled, as many bytes at batch_size."""
    if layer.output is not None:
        return layer.output
    num_bytes = layer.cost_at(batch_size).output_bytes
    return TensorSpec(shape=(num_bytes,), dtype="uint8", requires_grad=not layer.is_input)


def stages_that_share_parameters(
    graph: LayerGraph, stages: Sequence[Sequence[str]]
) -> tuple[tuple[int, ...], ...]:
    """Return for each stage the stages, itself included, that it has a trained parameter in common with."""
    held = [_trained(graph, names) for names in stages]
    return tuple(
        tuple(o for o, other in enumerate(held) if o == s or other & own)
        for s, own in enumerate(held)
    )


def _trained(graph: LayerGraph, names: Iterable[str]) -> set[str]:
    """Return the canonical names of the trained parameters of some layers."""
    canonical = graph.canonical_names
    return {
        canonical.get(parameter.name, parameter.name)
        for name in names
        for parameter in graph.by_name[name].parameters
        if parameter.spec.requires_grad
    }


def _makers(graph: LayerGraph, stages: Sequence[Sequence[str]]) -> dict[str, int]:
    """Return for every layer whose value may cross a border the stage that makes it.

    Raises:
        InputError: a layer is unknown, missing, or in two stages without being a bare parameter.
    """
    maker: dict[str, int] = {}
    for stage, names in enumerate(stages):
        for name in names:
            layer = graph.by_name.get(name)
            if layer is None or layer.is_input:
                raise InputError(f"stage {stage} has layer {name!r}, which is no layer to compute")
            if isinstance(layer.operation, AttributeOperation):
                continue
            if name in maker:
                raise InputError(f"layer {name!r} is in stages {maker[name]} and {stage}")
            maker[name] = stage
    for layer in chain_of(graph):
        if layer.name not in maker:
            raise InputError(f"layer {layer.name!r} is in no stage; every layer needs one")
        for name in layer.inputs:
            if maker.get(name, 0) > maker[layer.name]:
                raise InputError(
                    f"layer {layer.name!r} of stage {maker[layer.name]} takes {name!r}, which stage "
                    f"{maker[name]} makes; stages must follow the order of the layers"
                )
    return maker
