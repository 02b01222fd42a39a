"""What a layer graph says, for people and as one JSON object: heaviest layers, sum against whole."""

from collections.abc import Sequence
from typing import Any

from stagewright.graph import LayerCost, LayerGraph, LayerNode
from stagewright.value import VoxelsSpec

SUM_TOLERANCE = 0.03
"""Layers that add up to the whole within this need no explanation."""
MUCH_LAUNCHING = 0.1
"""Of the layers' time: at a smaller share launching cannot explain what is beyond the tolerance."""
LAUNCH_BOUND = 3.0
"""A layer that takes less than this many times the launch of its operators is all overhead; the rest is
Python around them."""


def summary(
    graph: LayerGraph, num_heaviest: int = 10, peak_tflops: float | None = None
) -> dict[str, Any]:
    """Return the summary of a profile; docs/formats.md lists its keys.

    peak_tflops: of the device, stated by the user.
    """
    largest = graph.batch_sizes[-1]
    copies = sum(layer.costs[0].taken_from is not None for layer in graph.steps)
    return {
        "task": graph.model.task,
        "factory": graph.model.factory,
        "structure_sha256": graph.model.structure_sha256,
        "device_type": graph.device_type,
        "device": graph.device,
        "emulated_slowdown": None if graph.emulation is None else graph.emulation.slowdown,
        "dtype": graph.dtype,
        "autocast": graph.autocast,
        "num_layers": len(graph.steps),
        "num_reused_layers": copies,
        "parameter_bytes": _parameter_bytes(graph),
        "peak_tflops": peak_tflops,
        "microbatches": [
            sum_against_whole(graph, size) | work(graph, size, peak_tflops)
            for size in graph.batch_sizes
        ],
        "launch_bound": launch_bound(graph, largest),
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
    launches_ms = [cost.launch_ms for cost in costs if cost.launch_ms is not None]
    return {
        "batch_size": batch_size,
        "repeats": costs[0].repeats,
        "layers_forward_ms": forward_ms,
        "layers_backward_ms": backward_ms,
        "whole_forward_ms": whole.forward_ms,
        "whole_backward_ms": whole.backward_ms,
        "update_ms": whole.update_ms,
        "sum_over_whole": (forward_ms + backward_ms) / whole_ms,
        "launch_share": sum(launches_ms) / (forward_ms + backward_ms) if launches_ms else None,
        "saved_bytes": sum(cost.saved_bytes or 0 for cost in costs),
        "peak_bytes": whole.peak_bytes,
    }


def work(graph: LayerGraph, batch_size: int, peak_tflops: float | None = None) -> dict[str, Any]:
    """Return the floating-point operations of one step and how fast the device does them.

    None: not counted for some layer, or no peak is stated.
    Source of MFU: Chowdhery et al., "PaLM", 2022, appendix B.
    """
    costs = [layer.cost_at(batch_size) for layer in graph.steps]
    costs += [cost for cost in graph.loss if cost.batch_size == batch_size]
    counted = [
        None if c.forward_flops is None or c.backward_flops is None
        else c.forward_flops + c.backward_flops
        for c in costs
    ]  # fmt: skip
    whole = graph.whole_at(batch_size)
    assert whole is not None
    if any(count is None for count in counted):
        return {"flops": None, "tflops_per_s": None, "mfu": None}
    flops = sum(count for count in counted if count is not None)
    tflops_per_s = flops / ((whole.forward_ms + whole.backward_ms) / 1e3) / 1e12
    mfu = None if peak_tflops is None else tflops_per_s / peak_tflops
    return {"flops": flops, "tflops_per_s": tflops_per_s, "mfu": mfu}


def launch_bound(graph: LayerGraph, batch_size: int) -> dict[str, Any]:
    """Return the layers whose time is all launching of operators, and their share of the layers' time."""
    found = []
    total_ms = found_ms = 0.0
    for layer in graph.steps:
        cost = layer.cost_at(batch_size)
        layer_ms = cost.forward_ms + cost.backward_ms
        total_ms += layer_ms
        if cost.launch_ms is not None and 0 < layer_ms < LAUNCH_BOUND * cost.launch_ms:
            found.append(layer.name)
            found_ms += layer_ms
    return {"batch_size": batch_size, "layers": found, "share_of_time": found_ms / (total_ms or 1)}


def layer_summary(layer: LayerNode, batch_size: int) -> dict[str, Any]:
    """Return one layer's costs at a micro-batch size."""
    cost = layer.cost_at(batch_size)
    return {
        "name": layer.name,
        "forward_ms": cost.forward_ms,
        "backward_ms": cost.backward_ms,
        "input_gradient_ms": cost.input_gradient_ms,
        "weight_gradient_ms": cost.weight_gradient_ms,
        "forward_spread_ms": cost.forward_spread_ms,
        "backward_spread_ms": cost.backward_spread_ms,
        "output_bytes": cost.output_bytes,
        "output_spread_bytes": cost.output_spread_bytes,
        **_per_voxel(layer, cost),
        "saved_bytes": cost.saved_bytes,
        "workspace_bytes": cost.workspace_bytes,
        "forward_flops": cost.forward_flops,
        "backward_flops": cost.backward_flops,
        "launch_ms": cost.launch_ms,
        "taken_from": cost.taken_from,
        "parameter_bytes": layer.parameter_bytes,
    }


def _per_voxel(layer: LayerNode, cost: LayerCost) -> dict[str, float | None]:
    """Return a sparse layer's times by row of its output, in microseconds; None where it has none."""
    rows = None
    if isinstance(layer.output, VoxelsSpec) and layer.output.features is not None:
        rows = layer.output.features.shape_at(cost.batch_size)[0]
    return {
        f"{what}_us_per_voxel": None if rows is None else ms * 1e3 / rows
        for what, ms in (("forward", cost.forward_ms), ("backward", cost.backward_ms))
    }


def text(content: dict[str, Any]) -> str:
    """Return a summary as a table for people."""
    slowdown = content["emulated_slowdown"]
    kind = "measured" if slowdown is None else f"emulated: measured x {slowdown:g}"
    mixed = f", autocast {content['autocast']}" if content["autocast"] else ""
    size = content["microbatches"][-1]["batch_size"]
    lines = [
        f"{content['task']}:{content['factory']} on {content['device_type']} ({content['device']}), "
        f"{content['dtype']}{mixed}; times {kind}",
        f"{content['num_layers']} layers, {content['parameter_bytes'] / 1e6:.2f} MB of parameters; "
        f"the heaviest at a micro-batch of {size}:",
        f"  {'layer':32} {'forward ms':>18} {'backward ms':>18} {'of inputs ms':>12} {'output MB':>10} "
        f"{'saved MB':>9}",
    ]
    for layer in content["heaviest"]:
        lines.append(
            f"  {layer['name']:32} {_time(layer, 'forward'):>18} {_time(layer, 'backward'):>18} "
            f"{_number(layer['input_gradient_ms'], '.3f'):>12} "
            f"{layer['output_bytes'] / 1e6:10.3f} {layer['saved_bytes'] / 1e6:9.3f}"
        )
    lines += _table_of_sizes(content) + why_sums_differ(content["microbatches"])
    bound = content["launch_bound"]
    if bound["layers"]:
        shown = ", ".join(bound["layers"][:5]) + (", …" if len(bound["layers"]) > 5 else "")
        lines.append(
            f"{len(bound['layers'])} layers are all launch overhead at a micro-batch of {size} "
            f"({bound['share_of_time']:.1%} of the layers' time): {shown}"
        )
    if content["num_reused_layers"]:
        lines.append(
            f"{content['num_reused_layers']} of the layers were not measured: they are copies of others"
        )
    return "\n".join(lines)


def _table_of_sizes(content: dict[str, Any]) -> list[str]:
    peak = content["peak_tflops"]
    utilisation = "" if peak is None else f" {'MFU':>7}"
    lines = [f"  {'micro-batch':>11} {'sum of layers ms':>17} {'whole ms':>10} {'sum/whole':>10} "
             f"{'update ms':>10} {'repeats':>8} {'TFLOP/s':>8}{utilisation}"]  # fmt: skip
    for row in content["microbatches"]:
        layers_ms = row["layers_forward_ms"] + row["layers_backward_ms"]
        whole_ms = row["whole_forward_ms"] + row["whole_backward_ms"]
        lines.append(
            f"  {row['batch_size']:11d} {layers_ms:17.3f} {whole_ms:10.3f} {row['sum_over_whole']:10.4f} "
            f"{row['update_ms']:10.3f} {row['repeats']:8d} {_number(row['tflops_per_s'], '.4f'):>8}"
            + ("" if peak is None else f" {_number(row['mfu'], '.1%'):>7}")
        )
    if peak is not None:
        lines.append(f"  MFU: measured, against the stated peak of {peak:g} TFLOP/s")
    return lines


def why_sums_differ(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each micro-batch size whose layers add up to something else than the whole."""
    lines = []
    for row in rows:
        away, share = row["sum_over_whole"] - 1, row["launch_share"]
        if abs(away) <= SUM_TOLERANCE:
            continue
        launching = "" if share is None else f" ({share:.0%} of the layers' time here)"
        reason = f"launching operators{launching} and clocks between layers do not add up as computing does"
        if share is not None and share < MUCH_LAUNCHING:
            reason = (
                f"launching operators is no reason{launching}; something else ran on this device, so profile "
                "again, or give --uncertainty"
            )
        lines.append(
            f"  at a micro-batch of {row['batch_size']} the layers add up to {abs(away):.1%} "
            f"{'more' if away > 0 else 'less'} than the whole: {reason}"
        )
    return lines


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


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
