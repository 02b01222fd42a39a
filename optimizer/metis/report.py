"""What the metis command says: one object, the people's text made from it, and the log of all plans."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from .exact import ExactResult
from .plan import DEFECTS, MetisPlan, defects_of
from .problem import Problem
from .search import RankedPlan, SearchResult

LOG_COLUMNS = (
    "rank", "cost", "node_sequence", "device_groups", "strategies", "batches", "layer_partition",
    "executable", "defects",
)  # fmt: skip


def search_report(
    problem: Problem, result: SearchResult, use_strat: bool, trials_ms: Sequence[float]
) -> dict[str, Any]:
    """Return the object that --json prints after a search; docs/metis.md lists its keys.

    Args:
        problem: what was planned.
        result: of the last trial.
        use_strat: the search's option.
        trials_ms: measured time of each trial, without loading.
    """
    rows = plan_rows(problem, result.plans)
    return {
        "objective_ms": rows[0]["cost"] if rows else None,
        "bound_ms": None,
        "gap": None,
        "solver": "metis",
        "cost_model": "metis",
        "seconds": sum(trials_ms) / 1000,
        "provenance": {"cost": "predicted", "average_ms": "measured"},
        "count": result.count,
        "use_strat": use_strat,
        "trials": len(trials_ms),
        "average_ms": sum(trials_ms) / len(trials_ms),
        "num_plans": len(rows),
        "num_executable": sum(row["executable"] for row in rows),
        "plan": rows[0] if rows else None,
        "best_executable": next((row for row in rows if row["executable"]), None),
        "stages": stages_of(problem, result.plans[0].plan) if rows else [],
    }


def exact_report(
    problem: Problem, result: ExactResult, seconds: float, fit_devices: bool
) -> dict[str, Any]:
    """Return the object that --json prints after --exact; docs/metis.md lists its keys."""
    rows = plan_rows(problem, [result.best] if result.best else [])
    return {
        "objective_ms": rows[0]["cost"] if rows else None,
        "bound_ms": result.bound_ms if rows else None,
        "gap": result.gap if rows else None,
        "solver": "exact",
        "cost_model": "metis",
        "seconds": seconds,
        "provenance": {"cost": "predicted", "seconds": "measured"},
        "proven": result.proven,
        "fit_devices": fit_devices,
        "num_programmes": result.num_programmes,
        "plan": rows[0] if rows else None,
        "stages": stages_of(problem, result.best.plan) if result.best else [],
    }


def plan_rows(problem: Problem, plans: Sequence[RankedPlan]) -> list[dict[str, Any]]:
    """Return one object per plan: Metis's columns, and why it is not executable if it is not."""
    rows = []
    for rank, ranked in enumerate(plans, 1):
        plan, defects = ranked.plan, defects_of(problem, ranked.plan)
        rows.append(
            {
                "rank": rank,
                "cost": ranked.cost_ms,
                "node_sequence": list(plan.node_sequence),
                "device_groups": list(plan.device_groups),
                "strategies": [list(strategy) for strategy in plan.strategies],
                "batches": plan.batches,
                "layer_partition": list(plan.partition),
                "executable": not defects,
                "defects": list(defects),
            }
        )
    return rows


def stages_of(problem: Problem, plan: MetisPlan) -> list[dict[str, Any]]:
    """Return the stages as every planning command prints them: layers, and ranks and share per replica."""
    stages, first_rank = [], 0
    samples = problem.settings.global_batch_size // plan.batches
    for stage in plan.stages(problem):
        heads = stage.span.heads(stage.num_replicas)
        shares: Sequence[int] = [stage.batch_size] * stage.num_replicas
        if len(stage.span.types) > 1:
            shares = problem.shares(stage.span, stage.num_replicas, stage.degree, samples)
        replicas = []
        for index, (name, share) in enumerate(zip(heads, shares, strict=True)):
            start = first_rank + index * stage.degree
            ranks = list(range(start, start + stage.degree))
            replicas.append({"device_type": name, "ranks": ranks, "share": share})
        stages.append({"layers": list(range(stage.start, stage.end)), "replicas": replicas})
        first_rank += stage.span.size
    return stages


def search_text(report: dict[str, Any]) -> str:
    """Return a search's report for people; the first two lines and the columns are the fork's."""
    lines = [
        f"Average time: {report['average_ms']:.3f} ms  (measured, {report['trials']} trials)",
        f"count: {report['count']}",
    ]
    if report["plan"] is None:
        return "\n".join([*lines, "no plan: every partition exceeds the memory by Metis's rule"])
    lines += [", ".join(LOG_COLUMNS[:7]), _line(report["plan"]), _executable(report["plan"])]
    best = report["best_executable"]
    if best is None:
        lines.append(f"none of the {report['num_plans']} plans is executable")
    elif best["rank"] > 1:
        lines += ["the cheapest executable plan:", _line(best)]
    lines.append(
        f"{report['num_executable']} of {report['num_plans']} plans are executable; "
        "costs are predicted, in ms"
    )
    return "\n".join(lines)


def exact_text(report: dict[str, Any]) -> str:
    """Return the report of --exact for people."""
    if report["plan"] is None:
        if report["proven"]:
            return "no plan is feasible: every one exceeds the memory (proven)"
        return "no plan was found within the time limit"
    proof = (
        "proven optimal under Metis's formula" if report["proven"] else "stopped by the time limit"
    )
    return "\n".join(
        [
            ", ".join(LOG_COLUMNS[:7]),
            _line(report["plan"]),
            _executable(report["plan"]),
            f"cost {report['objective_ms']:.6f} ms (predicted), bound {report['bound_ms']:.6f} ms, gap "
            f"{report['gap']:.3%}: {proof}",
            f"{report['seconds']:.3f} s (measured), {report['num_programmes']} dynamic programmes",
        ]
    )


def log_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of all plans as CSV; lists are written as Metis prints them."""
    text = io.StringIO()
    writer = csv.DictWriter(text, LOG_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {
                name: _cell(value) if isinstance(value, list) else value
                for name, value in row.items()
            }
        )
    return text.getvalue()


def _cell(values: list[Any]) -> str:
    pairs = [tuple(value) if isinstance(value, list) else value for value in values]
    return str(pairs).replace("'", "")


def _line(row: dict[str, Any]) -> str:
    cells = [row[name] for name in LOG_COLUMNS[:7]]
    return ", ".join(_cell(cell) if isinstance(cell, list) else str(cell) for cell in cells)


def _executable(row: dict[str, Any]) -> str:
    if row["executable"]:
        return "executable: yes"
    return "executable: no: " + "; ".join(DEFECTS[name] for name in row["defects"])
