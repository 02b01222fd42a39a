"""A layer graph as a picture: graphviz source, each layer coloured by its share of the time."""

import graphviz

from stagewright.graph import LayerGraph, LayerNode

HUE = "0.05"
"""Orange; the saturation is the layer's time over the heaviest layer's."""


def dot_source(graph: LayerGraph) -> str:
    """Return graphviz source; times are of the largest micro-batch size."""
    size = graph.batch_sizes[-1]
    emulated = "measured" if graph.emulation is None else f"emulated x {graph.emulation.slowdown:g}"
    title = f"{graph.model.task}, {graph.device_type}, micro-batch {size}, ms forward + backward ({emulated})"
    times = {layer.name: total_ms(layer, size) for layer in graph.layers}
    heaviest_ms = max(times.values()) or 1.0
    picture = graphviz.Digraph(graph_attr={"label": graphviz.escape(title)})
    picture.attr("node", shape="box", style="filled", fontname="Helvetica")
    numbers = {layer.name: f"layer{i}" for i, layer in enumerate(graph.layers)}
    for layer in graph.layers:
        cost = layer.cost_at(size)
        label = f"{layer.name}\n{cost.forward_ms:.3f} + {cost.backward_ms:.3f}"
        share = times[layer.name] / heaviest_ms
        picture.node(
            numbers[layer.name], graphviz.escape(label), fillcolor=f"{HUE} {share:.3f} 1.000"
        )
    for layer in graph.layers:
        for name in layer.inputs:
            num_bytes = graph.by_name[name].cost_at(size).output_bytes
            picture.edge(numbers[name], numbers[layer.name], label=f"{num_bytes / 1e3:.1f} kB")
    return str(picture.source)


def total_ms(layer: LayerNode, batch_size: int) -> float:
    """Return a layer's forward and backward time."""
    cost = layer.cost_at(batch_size)
    return cost.forward_ms + cost.backward_ms
