"""What `stagewright optimize` says about a plan: one object, and the people's text made from it."""

from collections import Counter
from pathlib import Path
from typing import Any

from .alternatives import Ranked
from .baselines import MOST_ACTIONS
from .planning import SIMULATED, Result
from .problem import MS_PER_HOUR

PROVEN_GAP = 1e-9
"""A plan with at most this gap is proven: nothing is faster but by rounding."""


def report_of(result: Result, plan_path: Path) -> dict[str, Any]:
    """Return the object that --json prints; docs/formats.md lists its keys."""
    plan, problem = result.plan, result.problem
    every, mixed = plan.proof.every_cut, plan.proof.mixed_types
    return {
        "plan": str(plan_path),
        "objective": plan.proof.objective,
        "objective_value": plan.proof.value,
        "bound_value": plan.proof.lower_bound,
        "objective_ms": None if problem.objective == "cost" else plan.proof.value,
        "bound_ms": None if problem.objective == "cost" else plan.proof.lower_bound,
        "gap": plan.proof.gap,
        "every_cut_bound_value": None if every is None else every.lower_bound,
        "every_cut_gap": plan.proof.every_cut_gap,
        "every_cut_method": None if every is None else every.method,
        "mixed_types_bound_value": None if mixed is None else mixed.lower_bound,
        "mixed_types_gap": plan.proof.mixed_types_gap,
        "solver": plan.proof.solver,
        "space": plan.proof.space,
        "cost_model": "stagewright",
        "seconds": result.seconds,
        "predicted_step_ms": plan.predicted_step_ms,
        "batch_size": plan.batch_size,
        "microbatch_size": plan.microbatch_size,
        "num_microbatches": plan.num_microbatches,
        "schedule": plan.schedule,
        "optimizer": problem.optimizer,
        "overlap": problem.overlap,
        "memory_counted": problem.count_memory,
        "stages": [_stage(result, stage) for stage in range(len(plan.stages))],
        "emulated": dict(plan.slowdowns),
        "idle_devices": list(result.idle),
        "baselines": [
            {"name": b.name, "predicted_step_ms": b.step_ms, "fits": b.fits}
            for b in result.baselines
        ],
        "predicted_period_ms": result.prediction.score.load_ms / plan.num_microbatches
        if problem.is_inference
        else None,
        "constraints": list(problem.constraints.named),
        **_prices(result),
        "fewer_devices": _fewer(result),
        "ranked_by": result.ranked_by if result.ranking else None,
        "ranking": [_ranked(ranked) for ranked in result.ranking],
        "notes": _notes(result),
    }


def _prices(result: Result) -> dict[str, float | None]:
    """Return the price of the devices that the plan uses, and of 1 000 simulated steps; None if unknown."""
    types = result.problem.inputs.cluster.device_types
    replicas = [r for stage in result.plan.stages for r in stage.replicas]
    prices = [types[replica.device_type].price_per_hour for replica in replicas]
    known = [price for price in prices if price is not None]
    if len(known) < len(prices):
        return {"price_per_hour": None, "predicted_price_per_1000_steps": None}
    per_hour = sum(known)
    steps = per_hour * result.plan.predicted_step_ms * 1000 / MS_PER_HOUR
    return {"price_per_hour": per_hour, "predicted_price_per_1000_steps": steps}


def _fewer(result: Result) -> dict[str, Any] | None:
    if result.fewer is None:
        return None
    return {
        "devices": [
            {"server": server, "device_type": kind, "count": count}
            for server, kind, count in result.fewer.devices
        ],
        "objective_value": result.fewer.value,
        "more": result.fewer.more,
    }


def _ranked(ranked: Ranked) -> dict[str, Any]:
    plan = ranked.prediction.plan
    return {
        "objective_value": ranked.value,
        "predicted_step_ms": plan.predicted_step_ms,
        "microbatch_size": plan.microbatch_size,
        "stages": [
            {
                "first_layer": stage.layers[0],
                "num_layers": len(stage.layers),
                "recompute": stage.recompute,
                "replicas": [
                    {"server": server, "device_type": kind, "count": count}
                    for (server, kind), count in Counter(
                        (r.server, r.device_type) for r in stage.replicas
                    ).items()
                ],
            }
            for stage in plan.stages
        ],
    }


def _stage(result: Result, stage: int) -> dict[str, Any]:
    content = result.plan.stages[stage]
    replicas = []
    for replica in content.replicas:
        predicted = replica.predicted
        replicas.append(
            {
                "device_type": replica.device_type,
                "server": replica.server,
                "ranks": [replica.rank],
                "share": replica.share,
                "predicted_forward_ms": predicted.forward_ms,
                "predicted_backward_ms": predicted.backward_ms,
                "predicted_backward_input_ms": predicted.backward_input_ms,
                "predicted_backward_weight_ms": predicted.backward_weight_ms,
                "predicted_reduce_ms": predicted.reduce_ms,
                "predicted_update_ms": predicted.update_ms,
                "predicted_peak_bytes": predicted.peak_bytes
                if result.problem.count_memory
                else None,
                "predicted_idle_share": result.prediction.timeline.idle_share(replica.rank),
            }
        )
    layers = list(content.layers)
    return {"layers": layers, "recompute": content.recompute, "replicas": replicas}


def _notes(result: Result) -> list[str]:
    plan, problem = result.plan, result.problem
    notes = []
    if result.idle and plan.proof.lower_bound > 0:
        idle = ", ".join(f"{count} x {kind}" for kind, count in Counter(result.idle).items())
        better = "cheaper" if problem.objective == "cost" else "faster"
        within = f" within {' and '.join(limits)}" if (limits := problem.constraints.named) else ""
        notes.append(
            f"fewer devices do as well: {idle} stay idle, using them would not be {better}{within}"
            if plan.proof.gap <= PROVEN_GAP
            else f"{idle} stay idle in the best plan found; it is not proven that using them is no {better}"
        )
    if result.fewer is not None:
        notes.append(
            f"fewer devices do as well: {result.fewer} reach {result.fewer.value:.6g}, "
            f"{result.fewer.more:.3%} more than the plan"
        )
    if result.ranked_by == "simulation":
        notes.append(
            f"this is the best of {len(result.ranking)} plans by the simulator, number "
            f"{result.chosen_rank} by the closed formula, in which the bound is proven"
        )
    if not result.ranking_is_whole:
        notes.append(
            f"time was up after {len(result.ranking)} of the best plans; those that follow are not known"
        )
    if result.baselines_left_out:
        notes.append(
            f"left out of the comparison, as a step has more than {MOST_ACTIONS} actions: "
            + ", ".join(result.baselines_left_out)
        )
    for baseline in result.baselines:
        faster = baseline.fits and baseline.step_ms < plan.predicted_step_ms * (1 - 1e-9)
        if faster and problem.objective == "step-time":
            notes.append(
                f"the simulator predicts {baseline.step_ms:.3f} ms for {baseline.name}, less than for this "
                "plan, which is best under the closed formula"
                if plan.proof.lower_bound > 0
                else f"{baseline.name} is predicted to be faster than the given stages"
            )
    measured = {
        kind: whole.update_optimizer
        for kind, graph in problem.inputs.graphs.items()
        if (whole := graph.whole_at(plan.microbatch_size)) is not None
    }
    named = problem.optimizer.partition("-")[0]
    for kind, optimizer in measured.items():
        if optimizer.lower() != named:
            notes.append(
                f"the update on {kind} was measured with {optimizer}, the plan is for {problem.optimizer}"
            )
    again = [str(number) for number, stage in enumerate(plan.stages) if stage.recompute]
    if again:
        notes.append(f"stages run forward again before each backward: {', '.join(again)}")
    if not problem.count_memory:
        notes.append("memory was not counted (--ignore-memory)")
    if not problem.count_update:
        notes.append("the update was not counted (--ignore-update)")
    return notes


def text_of(report: dict[str, Any]) -> str:
    """Return the report for people."""
    lines = [
        f"{report['schedule']}, {report['num_microbatches']} micro-batches of "
        f"{report['microbatch_size']} samples; times per micro-batch, all predicted",
        f"{'stage':5}  {'layers':40} {'rank':>4} {'device type':14} {'share':>5} {'forward':>9} "
        f"{'backward':>9} {'peak':>11} {'idle':>5}",
    ]
    for number, stage in enumerate(report["stages"]):
        layers = f"{stage['layers'][0]} .. {stage['layers'][-1]} ({len(stage['layers'])})"
        layers += " again" if stage["recompute"] else ""
        layers = layers if len(layers) <= 40 else layers[:37] + "..."
        for index, replica in enumerate(stage["replicas"]):
            row = _row(replica, report["emulated"])
            head = f"{number:5}  {layers:40}" if index == 0 else " " * 47
            lines.append(f"{head} {row}")
    lines.append("")
    lines.append(
        f"step time       {report['predicted_step_ms']:10.3f} ms  predicted by the simulator"
    )
    solver = f"{report['solver']}, {report['seconds']:.2f} s"
    value, bound = (
        f"{report[key]:.5g}" if report["objective_ms"] is None else f"{report[key]:.3f} ms"
        for key in ("objective_value", "bound_value")
    )
    judge = "simulator" if report["objective"] == SIMULATED else "closed formula"
    lines.append(
        f"{report['objective']:15} {value:>13}  predicted by the {judge}; bound {bound}, "
        f"gap {report['gap']:.2%} ({solver})"
    )
    lines += _wider_bounds(report)
    if report["predicted_period_ms"] is not None:
        lines.append(
            f"period          {report['predicted_period_ms']:10.3f} ms  predicted by the closed formula"
        )
    if report["price_per_hour"] is not None:
        lines.append(
            f"price           {report['price_per_hour']:10.3f} per hour; "
            f"{report['predicted_price_per_1000_steps']:.4g} per 1000 steps, predicted by the simulator"
        )
    for baseline in report["baselines"]:
        ratio = baseline["predicted_step_ms"] / report["predicted_step_ms"]
        memory = "" if baseline["fits"] else ", does not fit into memory"
        lines.append(
            f"{'':15} {baseline['predicted_step_ms']:10.3f} ms  predicted for {baseline['name']} "
            f"({ratio:.2f}x the plan's{memory})"
        )
    for name, factor in report["emulated"].items():
        lines.append(f"device type {name} is emulated: another device slowed down x{factor:g}")
    lines += _ranking_lines(report)
    lines += [f"note: {note}" for note in report["notes"]]
    lines.append(f"searched: {report['space']}")
    lines.append(f"plan written to {report['plan']}")
    return "\n".join(lines)


def _wider_bounds(report: dict[str, Any]) -> list[str]:
    """Return lines on what is known beyond the space that was searched."""
    lines = []
    if report["every_cut_gap"] is not None:
        lines.append(
            f"{'every cut':15} {'':13}  bound {report['every_cut_bound_value']:.5g}, gap "
            f"{report['every_cut_gap']:.2%}, for all cuts of the graph ({report['every_cut_method']})"
        )
    if report["mixed_types_gap"] is not None:
        lines.append(
            f"{'mixed types':15} {'':13}  bound {report['mixed_types_bound_value']:.5g}, gap "
            f"{report['mixed_types_gap']:.2%}, with stages of several device types, too"
        )
    return lines


def _ranking_lines(report: dict[str, Any]) -> list[str]:
    if not report["ranking"]:
        return []
    lines = [f"{'rank':>4} {report['objective']:>20} {'simulated step':>17}  stages, all predicted"]
    for number, ranked in enumerate(report["ranking"], 1):
        stages = []
        for stage in ranked["stages"]:
            devices = "+".join(
                f"{r['count']} {r['device_type']}@{r['server']}" for r in stage["replicas"]
            )
            stages.append(f"{stage['first_layer']} ({stage['num_layers']}) on {devices}")
        lines.append(
            f"{number:4} {ranked['objective_value']:20.6g} {ranked['predicted_step_ms']:14.3f} ms  "
            f"micro-batch {ranked['microbatch_size']}: {' | '.join(stages)}"
        )
    return lines


def _row(replica: dict[str, Any], emulated: dict[str, float]) -> str:
    kind = replica["device_type"] + (" (emul.)" if replica["device_type"] in emulated else "")
    peak = replica["predicted_peak_bytes"]
    peak_text = "-" if peak is None else f"{peak / 2**20:.2f} MiB"
    return (
        f"{replica['ranks'][0]:4} {kind:14} {replica['share']:5} "
        f"{replica['predicted_forward_ms']:6.3f} ms {replica['predicted_backward_ms']:6.3f} ms "
        f"{peak_text:>11} {replica['predicted_idle_share']:5.0%}"
    )
