"""PipeDream's text graphs as layer graphs, and back."""

import hashlib
import heapq
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from stagewright.document import InputError
from stagewright.graph import (
    ExternalOperation,
    InputOperation,
    LayerCost,
    LayerGraph,
    LayerNode,
    ModelIdentity,
)
from stagewright.pipedream_description import describe
from stagewright.pipedream_graph import TextGraph, TextNode, is_description
from stagewright.value import (
    LayerRef,
    SequenceArgument,
    SequenceSpec,
    references_of,
    tensors_of,
)


def to_layer_graph(
    text_graph: TextGraph, device_type: str, batch_size: int, *, task: str = "external"
) -> LayerGraph:
    """Return the layer graph of a text graph, its layers in topological order, earlier lines first.

    Nodes without a predecessor whose description starts with "Input" become model inputs, numbered in the
    layers' order; they keep the times of the file (of loading data), which no stage is charged with. All
    others become layers that cannot be generated. Saved bytes are None: the format does not hold them.

    Args:
        device_type: what the times were measured on.
        batch_size: the samples of the micro-batch that the numbers are for.
        task: what the graph is to be called.

    Raises:
        InputError: the graph has a cycle.
    """
    sources: dict[str, list[str]] = {node.name: [] for node in text_graph.nodes}
    for source, target in text_graph.edges:
        sources[target].append(source)
    layers: list[LayerNode] = []
    num_inputs = 0
    for node in _topological_order(text_graph):
        operation: InputOperation | ExternalOperation = ExternalOperation(
            description=node.description
        )
        if node.description.startswith("Input") and not sources[node.name]:
            operation = InputOperation(key=num_inputs)
            num_inputs += 1
        cost = LayerCost(
            batch_size=batch_size,
            forward_ms=node.forward_ms,
            backward_ms=node.backward_ms,
            output_bytes=round(math.fsum(node.activations)),
        )
        layer = LayerNode(
            name=node.name,
            operation=operation,
            arguments=tuple(LayerRef(name=source) for source in sources[node.name]),
            parameter_bytes=round(node.parameter_bytes),
            costs=(cost,),
        )
        layers.append(layer)
    inner = {source for source, _ in text_graph.edges}
    sinks = tuple(LayerRef(name=layer.name) for layer in layers if layer.name not in inner)
    return LayerGraph(
        model=ModelIdentity(task=task, factory="", structure_sha256=_structure_sha256(layers)),
        device_type=device_type,
        device=device_type,
        dtype="float32",
        torch_version="unknown",
        batch_sizes=(batch_size,),
        layers=tuple(layers),
        output=sinks[0] if len(sinks) == 1 else SequenceArgument(type="tuple", items=sinks),
    )


def from_layer_graph(
    graph: LayerGraph, batch_size: int, stages: Mapping[str, int] | None = None
) -> TextGraph:
    """Return a layer graph as text, with identifiers node1, node2 ... in the order of its layers.

    Args:
        batch_size: which of the measured micro-batch sizes to write.
        stages: the stage of each layer by name, for a graph that is cut; inputs that it does not name are
            of stage 0, as in PipeDream's own files.

    Raises:
        InputError: batch_size was not measured.
    """
    identifiers = {layer.name: f"node{number}" for number, layer in enumerate(graph.layers, 1)}
    nodes, edges = [], []
    for layer in graph.layers:
        cost = layer.cost_at(batch_size)
        activation: float | tuple[float, ...] = float(cost.output_bytes)
        if isinstance(layer.output, SequenceSpec) and layer.output.items:
            activation = tuple(
                float(sum(tensor.bytes_at(batch_size) for tensor in tensors_of(item)))
                for item in layer.output.items
            )
        stage = None
        if stages is not None:
            stage = stages.get(layer.name, 0) if layer.is_input else stages[layer.name]
        node = TextNode(
            name=identifiers[layer.name],
            description=_one_line(describe(layer)),
            forward_ms=cost.forward_ms,
            backward_ms=cost.backward_ms,
            activation_bytes=activation,
            parameter_bytes=float(layer.parameter_bytes),
            stage=stage,
        )
        nodes.append(node)
        for argument in (*layer.arguments, *layer.keyword_arguments.values()):
            for source in references_of(argument):
                edges.append((identifiers[source], node.name))
    return TextGraph(nodes=tuple(nodes), edges=tuple(edges))


def _topological_order(text_graph: TextGraph) -> list[TextNode]:
    """Return the nodes, each after those it takes values from; of those that may come next, the first."""
    numbers = {node.name: number for number, node in enumerate(text_graph.nodes)}
    targets: dict[int, list[int]] = defaultdict(list)
    num_missing = [0] * len(numbers)
    for source, target in text_graph.edges:
        targets[numbers[source]].append(numbers[target])
        num_missing[numbers[target]] += 1
    ready = [number for number, missing in enumerate(num_missing) if not missing]
    order = []
    while ready:
        number = heapq.heappop(ready)
        order.append(text_graph.nodes[number])
        for target_number in targets[number]:
            num_missing[target_number] -= 1
            if not num_missing[target_number]:
                heapq.heappush(ready, target_number)
    if len(order) < len(numbers):
        left = {name for name in numbers if num_missing[numbers[name]]}
        cycle = _find_cycle(text_graph.edges, left)
        raise InputError(
            f"the edges {' -> '.join(cycle)} form a cycle, expected a graph without one; "
            "remove one of them"
        )
    return order


def _find_cycle(edges: Iterable[tuple[str, str]], left: set[str]) -> list[str]:
    """Return a cycle, its first node repeated at the end, among nodes that all have a source in left."""
    source_of = {target: source for source, target in edges if source in left and target in left}
    seen: dict[str, int] = {}
    walk = [min(left)]
    while walk[-1] not in seen:
        seen[walk[-1]] = len(walk) - 1
        walk.append(source_of[walk[-1]])
    return walk[seen[walk[-1]] :][::-1]


def _structure_sha256(layers: Iterable[LayerNode]) -> str:
    """Return a hash of identifiers and edges.

    Descriptions are left out: versions of one library print the same module differently, and profiles of
    one model on several device types must be recognised as such.
    """
    structure = [
        [layer.name, *(n for a in layer.arguments for n in references_of(a))] for layer in layers
    ]
    return hashlib.sha256(json.dumps(structure).encode()).hexdigest()


def _one_line(description: str) -> str:
    """Return a description that a node line can hold: itself if it can, else without what it cannot."""
    if is_description(description):
        return description
    return re.sub("--+", "-", " ".join(description.split()))
