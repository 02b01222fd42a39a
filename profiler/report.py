"""What a layer graph says, for people and as one JSON object: heaviest layers, sum against whole."""

from typing import Any

from stagewright.graph import LayerGraph, LayerNode


def summary(graph: LayerGraph, num_heaviest: int = 10) -> dict[str, Any]:
    """Return the summary of a profile; docs/formats.md lists its keys."""
    largest = graph.batch_sizes[-1]
    return {
        "task": graph.model.task,
        "factory": graph.model.factory,
        "structure_sha256": graph.model.structure_sha256,
        "device_type": graph.device_type,
        "device": graph.device,
        "emulated_slowdown": None if graph.emulation is None else graph.emulation.slowdown,
        "dtype": graph.dtype,
        "num_layers": len(graph.steps),
        "parameter_bytes": _parameter_bytes(graph),
        "microbatches": [sum_against_whole(graph, size) for size in graph.batch_sizes],
        "heaviest": [
            layer_summary(layer, largest) for layer in _heaviest(graph, largest)[:num_heaviest]
        ],
    }


def sum_against_whole(graph: LayerGraph, batch_size: int) -> dict[str, Any]:
    """Return how far the costs of the layers and the loss add up to the step measured in one piece."""
    costs = [layer.cost_at(batch_size) for layer in graph.layers]
    costs += [cost for cost in graph.loss if cost.batch_size == batch_size]
    whole = graph.whole_at(batch_size)
    assert whole is not None
    forward_ms = sum(cost.forward_ms for cost in costs)
    backward_ms = sum(cost.backward_ms for cost in costs)
    whole_ms = whole.forward_ms + whole.backward_ms
    return {
        "batch_size": batch_size,
        "repeats": costs[0].repeats,
        "layers_forward_ms": forward_ms,
        "layers_backward_ms": backward_ms,
        "whole_forward_ms": whole.forward_ms,
        "whole_backward_ms": whole.backward_ms,
        "update_ms": whole.update_ms,
        "sum_over_whole": (forward_ms + backward_ms) / whole_ms,
        "saved_bytes": sum(cost.saved_bytes or 0 for cost in costs),
        "peak_bytes": whole.peak_bytes,
    }


def layer_summary(layer: LayerNode, batch_size: int) -> dict[str, Any]:
    """Return one layer's costs at a micro-batch size."""
    cost = layer.cost_at(batch_size)
    return {
        "name": layer.name,
        "forward_ms": cost.forward_ms,
        "backward_ms": cost.backward_ms,
        "forward_spread_ms": cost.forward_spread_ms,
        "backward_spread_ms": cost.backward_spread_ms,
        "output_bytes": cost.output_bytes,
        "saved_bytes": cost.saved_bytes,
        "parameter_bytes": layer.parameter_bytes,
    }


def text(content: dict[str, Any]) -> str:
    """Return a summary as a table for people."""
    slowdown = content["emulated_slowdown"]
    kind = "measured" if slowdown is None else f"emulated: measured x {slowdown:g}"
    size = content["microbatches"][-1]["batch_size"]
    lines = [
        f"{content['task']}:{content['factory']} on {content['device_type']} ({content['device']}), "
        f"{content['dtype']}; times {kind}",
        f"{content['num_layers']} layers, {content['parameter_bytes'] / 1e6:.2f} MB of parameters; "
        f"the heaviest at a micro-batch of {size}:",
        f"  {'layer':32} {'forward ms':>18} {'backward ms':>18} {'output MB':>10} {'saved MB':>9}",
    ]
    for layer in content["heaviest"]:
        lines.append(
            f"  {layer['name']:32} {_time(layer, 'forward'):>18} {_time(layer, 'backward'):>18} "
            f"{layer['output_bytes'] / 1e6:10.3f} {layer['saved_bytes'] / 1e6:9.3f}"
        )
    lines.append(f"  {'micro-batch':>11} {'sum of layers ms':>17} {'whole ms':>10} {'sum/whole':>10} "
                 f"{'update ms':>10} {'repeats':>8}")  # fmt: skip
    for row in content["microbatches"]:
        layers_ms = row["layers_forward_ms"] + row["layers_backward_ms"]
        whole_ms = row["whole_forward_ms"] + row["whole_backward_ms"]
        lines.append(
            f"  {row['batch_size']:11d} {layers_ms:17.3f} {whole_ms:10.3f} {row['sum_over_whole']:10.4f} "
            f"{row['update_ms']:10.3f} {row['repeats']:8d}"
        )
    return "\n".join(lines)


def _time(layer: dict[str, Any], what: str) -> str:
    return f"{layer[f'{what}_ms']:.3f} ± {layer[f'{what}_spread_ms'] / 2:.3f}"


def _heaviest(graph: LayerGraph, batch_size: int) -> list[LayerNode]:
    def total_ms(layer: LayerNode) -> float:
        cost = layer.cost_at(batch_size)
        return cost.forward_ms + cost.backward_ms

    return sorted(graph.steps, key=total_ms, reverse=True)


def _parameter_bytes(graph: LayerGraph) -> int:
    """Return the bytes of the distinct parameters."""
    names = graph.canonical_names
    distinct = {
        names.get(p.name, p.name): p.spec.bytes_at(1)
        for layer in graph.layers
        for p in layer.parameters
    }
    return sum(distinct.values())
