"""What `stagewright optimize` says about a plan: one object, and the people's text made from it."""

from collections import Counter
from pathlib import Path
from typing import Any

from .planning import Result


def report_of(result: Result, plan_path: Path) -> dict[str, Any]:
    """Return the object that --json prints; docs/formats.md lists its keys."""
    plan, problem = result.plan, result.problem
    return {
        "plan": str(plan_path),
        "objective": plan.proof.objective,
        "objective_ms": plan.proof.value,
        "bound_ms": plan.proof.lower_bound,
        "gap": plan.proof.gap,
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
        "notes": _notes(result),
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
                "predicted_reduce_ms": predicted.reduce_ms,
                "predicted_update_ms": predicted.update_ms,
                "predicted_peak_bytes": predicted.peak_bytes
                if result.problem.count_memory
                else None,
                "predicted_idle_share": result.prediction.timeline.idle_share(replica.rank),
            }
        )
    return {"layers": list(content.layers), "replicas": replicas}


def _notes(result: Result) -> list[str]:
    plan, problem = result.plan, result.problem
    notes = []
    if result.idle and plan.proof.lower_bound > 0:
        idle = ", ".join(f"{count} x {kind}" for kind, count in Counter(result.idle).items())
        notes.append(f"fewer devices do as well: {idle} stay idle, using them would not be faster")
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
    lines.append(
        f"{report['objective']:15} {report['objective_ms']:10.3f} ms  predicted by the closed formula; bound "
        f"{report['bound_ms']:.3f} ms, gap {report['gap']:.2%} ({solver})"
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
    lines += [f"note: {note}" for note in report["notes"]]
    lines.append(f"searched: {report['space']}")
    lines.append(f"plan written to {report['plan']}")
    return "\n".join(lines)


def _row(replica: dict[str, Any], emulated: dict[str, float]) -> str:
    kind = replica["device_type"] + (" (emul.)" if replica["device_type"] in emulated else "")
    peak = replica["predicted_peak_bytes"]
    peak_text = "-" if peak is None else f"{peak / 2**20:.2f} MiB"
    return (
        f"{replica['ranks'][0]:4} {kind:14} {replica['share']:5} "
        f"{replica['predicted_forward_ms']:6.3f} ms {replica['predicted_backward_ms']:6.3f} ms "
        f"{peak_text:>11} {replica['predicted_idle_share']:5.0%}"
    )
