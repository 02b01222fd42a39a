"""What the planners for text graphs say: one object, and the people's text made from it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .output import Device
from .problem import PlannedPipeline


@dataclass(frozen=True)
class Baseline:
    """Something to compare a plan with, under the same formula."""

    name: str
    seconds: float
    """Per micro-batch."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A plan with everything that is said about it."""

    cost_model: str
    formula: str
    """What counts and how, for people."""
    pipeline: PlannedPipeline
    devices: tuple[Device, ...]
    links: tuple[str, ...]
    baselines: tuple[Baseline, ...]
    seconds: float
    """Reading and planning took."""
    notes: tuple[str, ...] = ()
    objective: str = "time_per_stage"
    """"time_per_stage": the slowest stage or transfer; "latency": all of them in turn."""


def report_of(outcome: Outcome, written: Sequence[Path], notes: Sequence[str]) -> dict[str, Any]:
    """Return the object that --json prints; docs/formats.md lists its keys."""
    pipeline = outcome.pipeline
    value_s, bound_s = pipeline.value_s, pipeline.bound_s
    used = {rank for stage in pipeline.stages for rank in stage.ranks}
    idle = [rank for rank in range(len(outcome.devices)) if rank not in used]
    return {
        "objective": outcome.objective,
        "objective_ms": value_s * 1e3,
        "bound_ms": bound_s * 1e3,
        "gap": (value_s - bound_s) / value_s if value_s else 0.0,
        "solver": pipeline.solver,
        "space": pipeline.space,
        "cost_model": outcome.cost_model,
        "formula": outcome.formula,
        "seconds": outcome.seconds,
        "links": list(outcome.links),
        "num_cuts": len(pipeline.cuts) - 1,
        "num_layers": len(pipeline.cuts.topology.nodes),
        "nested": list(pipeline.nested),
        "stages": [_stage(outcome, number) for number in range(len(pipeline.stages))],
        "idle_devices": [outcome.devices[rank].device_type for rank in idle],
        "idle_ranks": idle,
        "baselines": [
            {"name": b.name, "predicted_ms": b.seconds * 1e3, "speedup": _ratio(b.seconds, value_s)}
            for b in outcome.baselines
        ],
        "written": [str(path) for path in written],
        "notes": [*outcome.notes, *notes],
    }


def _stage(outcome: Outcome, number: int) -> dict[str, Any]:
    stage = outcome.pipeline.stages[number]
    nodes = outcome.pipeline.cuts.topology.nodes
    layers = outcome.pipeline.cuts.layers(stage.first, stage.last)
    groups: dict[str, list[int]] = {}
    for rank in stage.ranks:
        groups.setdefault(outcome.devices[rank].device_type, []).append(rank)
    return {
        "layers": [nodes[layer].name for layer in layers],
        "first_cut": stage.first,
        "last_cut": stage.last,
        "replicas": [
            {"device_type": kind, "ranks": ranks, "share": 1} for kind, ranks in groups.items()
        ],
        "predicted_compute_ms": stage.compute_s * 1e3,
        "predicted_reduce_ms": stage.reduce_s * 1e3,
        "predicted_transfer_in_ms": stage.transfer_s * 1e3,
        "predicted_transfer_out_ms": stage.out_transfer_s * 1e3,
    }


def _ratio(baseline_s: float, value_s: float) -> float | None:
    return baseline_s / value_s if value_s else None


def text_of(report: dict[str, Any]) -> str:
    """Return the report for people."""
    lines = [
        f"cost model {report['cost_model']}: {report['formula']}",
        "all times are predicted by this formula from the profile, in seconds per micro-batch",
        *(f"link: {link}" for link in report["links"]),
        f"{report['num_layers']} layers, cuts 0 to {report['num_cuts']}",
        *(f"nested: {line}" for line in report["nested"]),
        "",
    ]
    stages = report["stages"]
    for number, (before, after) in enumerate(itertools.pairwise(stages), 1):
        lines.append(
            f"Split between layers {before['layers'][-1]} and {after['layers'][0]} "
            f"(cut {after['first_cut']}): stage {number} begins"
        )
    header = ("stage", "cuts", "replicas", "device types", "ranks")
    times = ("compute s", "DP comm s", "PP comm s")
    rows = [[*header, *times], *(_row(number, stage) for number, stage in enumerate(stages))]
    lines += ["", *_aligned(rows), f"Total number of stages: {len(stages)}"]
    if report["idle_ranks"]:
        pairs = zip(report["idle_ranks"], report["idle_devices"], strict=True)
        idle = ", ".join(f"{rank} ({kind})" for rank, kind in pairs)
        lines.append(f"Number of devices not used: {len(report['idle_ranks'])} (ranks {idle})")
    lines += ["", *_summary(report)]
    lines += [f"note: {note}" for note in report["notes"]]
    lines += [f"written: {path}" for path in report["written"]]
    return "\n".join(lines)


def _summary(report: dict[str, Any]) -> list[str]:
    latency = report["objective"] == "latency"
    what = "Latency of one input" if latency else "Time per stage in pipeline"
    value_s, bound_s = report["objective_ms"] / 1e3, report["bound_ms"] / 1e3
    lines = [
        f"{what}: {value_s:.6f} s (predicted; proven bound {bound_s:.6f} s, gap {report['gap']:.2%}; "
        f"solver {report['solver']}, {report['seconds']:.2f} s)"
    ]
    for baseline in report["baselines"]:
        lines.append(f"Time taken by {baseline['name']}: {baseline['predicted_ms'] / 1e3:.6f} s")
    lines += [
        f"{'Speed-up' if latency else 'Throughput increase'} (compared to {b['name']}): {b['speedup']:.3f}x"
        for b in report["baselines"]
        if b["speedup"] is not None
    ]
    return [*lines, f"searched: {report['space']}"]


def _row(number: int, stage: dict[str, Any]) -> list[str]:
    ranks = [rank for group in stage["replicas"] for rank in group["ranks"]]
    kinds = ", ".join(f"{len(g['ranks'])} {g['device_type']}" for g in stage["replicas"])
    transfer_ms = max(stage["predicted_transfer_in_ms"], stage["predicted_transfer_out_ms"])
    times = (stage["predicted_compute_ms"], stage["predicted_reduce_ms"], transfer_ms)
    return [
        str(number),
        f"({stage['first_cut']}, {stage['last_cut']})",
        str(len(ranks)),
        kinds,
        _ranges(sorted(ranks)),
        *(f"{ms / 1e3:.6f}" for ms in times),
    ]


def _ranges(ranks: Sequence[int]) -> str:
    """Return numbers in short: 0-3,8."""
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and parts[-1][-1] == rank - 1:
            parts[-1].append(rank)
        else:
            parts.append([rank])
    return ",".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
