"""The report: what every rank's actions took, measured, beside what the plan predicted."""

import statistics
from collections import defaultdict
from typing import Any

import torch.distributed as dist

from stagewright.document import Record

from .faults import waiting_for
from .session import Session

WARM_UP_STEPS = 2
"""The first steps of a run are left out: memory is allocated and connections are made in them."""


class ReplicaReport(Record):
    """One replica of one stage: medians over actions or steps."""

    stage: int
    rank: int
    device_type: str
    emulated_slowdown: float | None
    predicted_forward_ms: float
    measured_forward_ms: float | None
    predicted_backward_ms: float
    measured_backward_ms: float | None
    predicted_reduce_ms: float
    measured_reduce_ms: float | None
    """With the wait for the other replicas."""
    predicted_update_ms: float
    measured_update_ms: float | None
    measured_idle_share: float | None
    """Part of the steps in which the rank computed nothing."""
    measured_contention: float | None
    """Time of its computations over what its device spent on them; above 1 where ranks share a processor."""


class RunReport(Record):
    """Measured against predicted for a whole run."""

    num_steps: int
    """Steps that count: after the warm-up, the last thousand at most."""
    predicted_step_ms: float
    """By the simulator, before the run."""
    measured_step_ms: float | None
    """Median over steps of the slowest rank; None: too few steps."""
    replicas: tuple[ReplicaReport, ...]


def make_report(session: Session) -> RunReport | None:
    """Return the report on rank 0, None elsewhere; every rank calls this at the same time."""
    own = _own_measurements(session)
    everyone: list[dict[str, Any]] = [own]
    if session.world.control is not None:
        everyone = [{} for _ in range(session.world.size)]
        with waiting_for("the measurements of all ranks"):
            dist.all_gather_object(everyone, own, group=session.world.control)
    if session.world.rank != 0:
        return None
    steps = list(zip(*(measured["steps_ms"] for measured in everyone), strict=True))
    replicas = [
        _replica_report(session, index, position, everyone)
        for index, stage in enumerate(session.plan.stages)
        for position in range(len(stage.replicas))
    ]
    return RunReport(
        num_steps=len(steps),
        predicted_step_ms=session.plan.predicted_step_ms,
        measured_step_ms=_median([max(step) for step in steps]),
        replicas=tuple(replicas),
    )


def _own_measurements(session: Session) -> dict[str, Any]:
    """Return this rank's measurements after the warm-up, in milliseconds."""
    forgotten = session.num_steps_run - len(session.measured)
    steps = list(session.measured)[max(0, WARM_UP_STEPS - forgotten) :]
    actions: dict[str, list[float]] = defaultdict(list)
    counted = [item for step in steps for item in step.actions]
    device_ms = sum(item.device_s for item in counted) * 1e3
    for item in counted:
        actions[f"{item.action.stage}{item.action.kind}"].append((item.end_s - item.start_s) * 1e3)
    steps_ms = [step.step_s * 1e3 for step in steps]
    update_ms = [step.update_s * 1e3 for step in steps if step.update_s is not None]
    computing_ms = sum(map(sum, actions.values()))
    busy_ms = computing_ms + sum(update_ms)
    return {
        "actions": {name: _median(times) for name, times in actions.items()},
        "steps_ms": steps_ms,
        "reduce_ms": _median([step.reduce_s * 1e3 for step in steps]),
        "update_ms": _median(update_ms),
        "contention": computing_ms / device_ms if device_ms else None,
        "idle": 1 - busy_ms / sum(steps_ms) if steps_ms else None,
    }


def _replica_report(
    session: Session, index: int, position: int, everyone: list[dict[str, Any]]
) -> ReplicaReport:
    replica = session.plan.stages[index].replicas[position]
    measured, predicted = everyone[replica.rank], replica.predicted
    return ReplicaReport(
        stage=index,
        rank=replica.rank,
        device_type=replica.device_type,
        emulated_slowdown=session.plan.slowdowns.get(replica.device_type),
        predicted_forward_ms=predicted.forward_ms,
        measured_forward_ms=measured["actions"].get(f"{index}F"),
        predicted_backward_ms=predicted.backward_ms,
        measured_backward_ms=measured["actions"].get(f"{index}B"),
        predicted_reduce_ms=predicted.reduce_ms,
        measured_reduce_ms=measured["reduce_ms"],
        predicted_update_ms=predicted.update_ms,
        measured_update_ms=measured["update_ms"],
        measured_idle_share=measured["idle"],
        measured_contention=measured["contention"],
    )


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def format_report(report: RunReport) -> str:
    """Return the report as a table for people."""
    lines = [
        "Medians in ms, predicted (before the run) / measured (in it); a device type marked x is emulated:",
        "stage  rank  device type       forward/microbatch  backward/microbatch    update/step"
        "   idle  contention",
    ]
    for r in report.replicas:
        mark = (
            f"{r.device_type} (x{r.emulated_slowdown:g})" if r.emulated_slowdown else r.device_type
        )
        idle = "-" if r.measured_idle_share is None else f"{r.measured_idle_share:.0%}"
        contention = "-" if r.measured_contention is None else f"x{r.measured_contention:.2f}"
        lines.append(
            f"{r.stage:5}  {r.rank:4}  {mark:16} "
            f"{_pair(r.predicted_forward_ms, r.measured_forward_ms):>19}  "
            f"{_pair(r.predicted_backward_ms, r.measured_backward_ms):>19}  "
            f"{_pair(r.predicted_update_ms, r.measured_update_ms):>13}  {idle:>5}  {contention:>10}"
        )
    if report.measured_step_ms is not None:
        ratio = report.measured_step_ms / report.predicted_step_ms
        lines.append(
            f"step: predicted {report.predicted_step_ms:.2f} ms, measured {report.measured_step_ms:.2f} ms "
            f"(median of {report.num_steps} steps), measured / predicted = {ratio:.3f}"
        )
    else:
        lines.append(f"step: predicted {report.predicted_step_ms:.2f} ms, too few steps to measure")
    return "\n".join(lines)


def _pair(predicted: float, measured: float | None) -> str:
    return f"{predicted:.2f} / " + ("-" if measured is None else f"{measured:.2f}")
