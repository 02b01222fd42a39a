"""The report of a plan for another planner's file, as text for people."""

from typing import Any


def text_of(report: dict[str, Any]) -> str:
    """Return the report's text."""
    if not report["feasible"]:
        return f"no plan: {report['reason']}\ncost model {report['cost_model']}"
    rows = [_row(number, stage) for number, stage in enumerate(report["stages"])]
    lines = [
        f"{'stage':5}  {'layers':44} {'devices':24} {'time':>12} {'peak':>10}",
        *rows,
        "",
        f"time per sample {report['objective_ms']:.9g} ms, predicted by cost model {report['cost_model']}; "
        f"bound {report['bound_ms']:.9g} ms, gap {report['gap']:.2%} "
        f"({report['solver']}, {report['seconds']:.2f} s)",
        *(f"note: {note}" for note in report["notes"]),
        f"searched: {report['space']}",
    ]
    return "\n".join(lines)


def _row(number: int, stage: dict[str, Any]) -> str:
    names = stage["layers"]
    layers = names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]} ({len(names)})"
    layers = layers if len(layers) <= 44 else layers[:41] + "..."
    devices = f"{len(stage['replicas'])} x {stage['replicas'][0]['device_type']}"
    if stage.get("tensor_parallel", 1) > 1:
        devices += f", {stage['tensor_parallel']}-way"
    if stage.get("options"):
        devices += f", {len(stage['options'])} recomp."
    peak = stage.get("predicted_peak_bytes")
    peak_text = "-" if peak is None else f"{peak / 2**30:.3f} GiB"
    return f"{number:5}  {layers:44} {devices:24} {stage['predicted_ms']:9.4g} ms {peak_text:>10}"
