"""What stages hold and what they send: from a layer graph and its cuts to layers, borders and inputs.

A cut is a set of layers of the *chain*, which are the layers that compute, in the graph's topological order:
all that is before it, often the first so many of them. Not in the chain are the model's inputs (every stage
that takes one loads it itself) and bare parameters and buffers (AttributeOperation): their value never
crosses a border; every stage that uses one holds it itself, so its name may be in several stages, and a
parameter held twice is tied: the runtime sums its gradients.

A value goes straight from the stage that makes it to every later stage that uses it; nothing is relayed.
The model returns from the last stage: a returned value made earlier goes there.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from stagewright.document import InputError
from stagewright.graph import AttributeOperation, InputOperation, LayerGraph, LayerNode
from stagewright.plan import Border, ModelInput, NamedValue
from stagewright.value import OpaqueSpec, TensorSpec, ValueSpec, parts_of, tensors_of

from .voxels import with_needed_parts


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
    """Return the layers of stages that are runs of the chain (layers_of_stages).

    Stage s has the chain's layers cuts[s - 1] up to, not including, cuts[s].
    """
    edges = (0, *cuts, len(chain_of(graph)))
    assert list(edges) == sorted(set(edges)), "cuts must rise strictly inside the chain"
    return layers_of_stages(graph, list(itertools.starmap(range, itertools.pairwise(edges))))


def layers_of_stages(
    graph: LayerGraph, stages: Sequence[Iterable[int]]
) -> tuple[tuple[str, ...], ...]:
    """Return each stage's layer names in the graph's order, bare parameters with every stage that uses them.

    A bare parameter or buffer that nothing uses goes to the last stage, as does one that the model returns.

    Args:
        stages: positions in the chain, each in one stage.
    """
    chain = chain_of(graph)
    held = [list(positions) for positions in stages]
    assert sorted(itertools.chain(*held)) == list(range(len(chain))), "every layer has one stage"
    used_anywhere = {name for layer in graph.layers for name in layer.inputs}
    bare = {s.name for s in graph.steps if isinstance(s.operation, AttributeOperation)}
    found = []
    for number, positions in enumerate(held):
        names = {chain[position].name for position in positions}
        names |= {n for position in positions for n in chain[position].inputs if n in bare}
        if number == len(held) - 1:
            names |= {name for name in bare if name not in used_anywhere or name in graph.outputs}
        found.append(tuple(step.name for step in graph.steps if step.name in names))
    return tuple(found)


def crossing_bytes(
    graph: LayerGraph, chain: Sequence[LayerNode], batch_size: int
) -> npt.NDArray[np.float64]:
    """Return (L + 1,) bytes of the values that cross the cut behind each number of layers of the chain."""
    last = {name: index for index, layer in enumerate(chain) for name in layer.inputs}
    last |= dict.fromkeys(graph.outputs, len(chain) - 1)
    change = np.zeros(len(chain) + 1)
    for index, layer in enumerate(chain):
        if last.get(layer.name, index) > index:
            tensors = tensors_of(spec_of(layer, batch_size))
            num_bytes = sum(tensor.bytes_at(batch_size) for tensor in tensors)
            change[index + 1] += num_bytes
            change[last[layer.name] + 1] -= num_bytes
    return np.cumsum(change)


def borders_of(
    graph: LayerGraph, stages: Sequence[Sequence[str]], batch_size: int
) -> tuple[Border, ...]:
    """Return what each stage sends to each later one, by (source, target); values in the graph's order.

    None and numbers that depend on nothing but the micro-batch size are listed where they are used, though no
    message carries them. batch_size only matters for a graph without specifications (`spec_of`).

    Raises:
        InputError: a value that cannot be sent would have to be.
    """
    maker = _makers(graph, stages)
    crossing: dict[tuple[int, int], set[str]] = {}
    for target, names in enumerate(stages):
        wanted = [name for layer in names for name in graph.by_name[layer].inputs]
        if target == len(stages) - 1:
            wanted += graph.outputs
        for name in wanted:
            if maker.get(name, target) != target:
                _demand_sendable(graph.by_name[name], maker[name], target)
                crossing.setdefault((maker[name], target), set()).add(name)
    whole = (
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
    return with_needed_parts(graph, stages, whole)


def opaque_type(layer: LayerNode) -> str | None:
    """Return the class of what a layer returns that cannot be sent; None if all of it can."""
    parts = () if layer.output is None else parts_of(layer.output)
    return next((part.type for part in parts if isinstance(part, OpaqueSpec)), None)


def opaque_groups(graph: LayerGraph) -> Iterator[tuple[str, ...]]:
    """Yield each layer whose value cannot be sent with the layers of the chain that take it.

    If the model returns it, the last layer of the chain is one of them.
    """
    chain = chain_of(graph)
    for layer in chain:
        if opaque_type(layer) is not None:
            takers = [other.name for other in chain if layer.name in other.inputs]
            if layer.name in graph.outputs:
                takers.append(chain[-1].name)
            yield (layer.name, *takers)


def _demand_sendable(layer: LayerNode, source: int, target: int) -> None:
    found = opaque_type(layer)
    if found is not None:
        raise InputError(
            f"layer {layer.name!r} of stage {source} returns a {found}, which stage {target} needs and which "
            "cannot be sent; put both into one stage, or return tensors, numbers, None, and tuples, lists or "
            "dicts of them"
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
