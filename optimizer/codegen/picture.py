"""The cut graph as a picture: graphviz source, layers in the boxes and colours of their stages."""

import graphviz

from stagewright.graph import AttributeOperation, LayerGraph
from stagewright.plan import Plan
from stagewright.value import tensors_of

HUES = 9
"""Colours before they repeat: graphviz's scheme pastel19."""


def cut_graph_source(plan: Plan, graph: LayerGraph) -> str:
    """Return graphviz source; edges that cross a border are red and say what a micro-batch sends."""
    title = f"{plan.task}: {len(plan.stages)} stages, micro-batch {plan.microbatch_size}"
    picture = graphviz.Digraph(graph_attr={"label": graphviz.escape(title), "compound": "true"})
    picture.attr("node", shape="box", style="filled", fontname="Helvetica")
    nodes = {layer.name: f"input{i}" for i, layer in enumerate(graph.layers) if layer.is_input}
    for name, node in nodes.items():
        picture.node(node, graphviz.escape(name), fillcolor="white")
    stage_of: dict[str, int] = {}
    for index, stage in enumerate(plan.stages):
        places = [f"rank {r.rank} {r.device_type}, share {r.share}" for r in stage.replicas]
        with picture.subgraph(name=f"cluster_{index}") as box:
            box.attr(label=graphviz.escape(f"stage {index}\n" + "\n".join(places)))
            for number, name in enumerate(stage.layers):
                held_here = isinstance(graph.by_name[name].operation, AttributeOperation)
                if not held_here or name not in nodes:
                    nodes[name] = f"stage{index}layer{number}"
                stage_of.setdefault(name, index)
                colour = f"/pastel19/{index % HUES + 1}"
                box.node(f"stage{index}layer{number}", graphviz.escape(name), fillcolor=colour)
    for index, stage in enumerate(plan.stages):
        for number, name in enumerate(stage.layers):
            for source in graph.by_name[name].inputs:
                at = nodes[source]
                if source in stage.layers:
                    at = f"stage{index}layer{stage.layers.index(source)}"
                crosses = source not in stage.layers and source in stage_of
                label = _sent(plan, graph, source) if crosses else ""
                colour = "red" if crosses else "black"
                picture.edge(at, f"stage{index}layer{number}", label=label, color=colour)
    return str(picture.source)


def _sent(plan: Plan, graph: LayerGraph, name: str) -> str:
    spec = graph.by_name[name].output
    if spec is None:
        return ""
    num_bytes = sum(tensor.bytes_at(plan.microbatch_size) for tensor in tensors_of(spec))
    return f"{num_bytes / 1e3:.1f} kB"
