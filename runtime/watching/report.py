"""The report: what every rank's actions took, measured, beside what the plan predicted."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from stagewright.document import Record
from stagewright.plan import Border, Plan
from stagewright.runtime.ranks.faults import waiting_for
from stagewright.runtime.session import Session
from stagewright.runtime.training.step_times import StepTimes

from .timeline import MeasuredTimeline, measure_timeline

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
    predicted_peak_bytes: int
    measured_peak_bytes: int | None
    """Of the rank's tensors in the steps, all its stages together; None: not measured (PeakMemory)."""
    predicted_backward_input_ms: float | None = None
    """Of the backward: what other stages wait for; None: not measured in the profile."""
    measured_backward_input_ms: float | None = None
    """None: it ran in one piece."""
    predicted_backward_weight_ms: float | None = None
    """Of the backward: what is for the stage's own parameters."""
    measured_backward_weight_ms: float | None = None


class BorderReport(Record):
    """What crosses one border in a step, over all ranks; what stays on a rank is not sent."""

    source: int
    """Stage."""
    target: int
    predicted_forward_bytes: int
    measured_forward_bytes: float | None
    """Counted by the senders, mean over the steps; None: too few steps."""
    predicted_backward_bytes: int
    measured_backward_bytes: float | None
    forward_messages: float | None
    """Counted, mean over the steps."""
    backward_messages: float | None


class RunReport(Record):
    """Measured against predicted for a whole run."""

    task: str
    schedule: str
    """That was run."""
    predicted_schedule: str
    """That the plan's figures are of."""
    dtype: str
    microbatch_size: int
    num_microbatches: int
    num_steps: int
    """Steps that count: after the warm-up, the last thousand at most."""
    predicted_step_ms: float
    """By the simulator, before the run."""
    measured_step_ms: float | None
    """Median over steps of the slowest rank; None: too few steps."""
    replicas: tuple[ReplicaReport, ...]
    borders: tuple[BorderReport, ...]
    timeline: MeasuredTimeline | None
    """Of the step of median time; None: too few steps."""


def make_report(session: Session) -> RunReport | None:
    """Return the report on rank 0, None elsewhere; every rank calls this at the same time."""
    counted = _counted_steps(session)
    own = _own_measurements(session, counted)
    everyone: list[dict[str, Any]] = [own]
    if session.world.control is not None:
        everyone = [{} for _ in range(session.world.size)]
        with waiting_for("the measurements of all ranks"):
            dist.all_gather_object(everyone, own, group=session.world.control)
    ranks_ms = [measured["steps_ms"] for measured in everyone]
    timeline = measure_timeline(session.world, counted, ranks_ms)
    if session.world.rank != 0:
        return None
    steps = list(zip(*ranks_ms, strict=True))
    replicas = [
        _replica_report(session, index, position, everyone)
        for index, stage in enumerate(session.plan.stages)
        for position in range(len(stage.replicas))
    ]
    plan = session.plan
    return RunReport(
        task=plan.task,
        schedule=session.schedule,
        predicted_schedule=plan.schedule,
        dtype=session.settings.dtype or plan.dtype,
        microbatch_size=plan.microbatch_size,
        num_microbatches=session.microbatches_per_step,
        num_steps=len(steps),
        predicted_step_ms=session.plan.predicted_step_ms,
        measured_step_ms=_median([max(step) for step in steps]),
        replicas=tuple(replicas),
        borders=tuple(
            _border_report(plan, border, [measured["sent"] for measured in everyone], len(steps))
            for border in plan.borders
        ),
        timeline=timeline,
    )


def _counted_steps(session: Session) -> list[StepTimes]:
    """Return this rank's steps after the warm-up."""
    forgotten = session.num_steps_run - len(session.measured)
    return list(session.measured)[max(0, WARM_UP_STEPS - forgotten) :]


def _own_measurements(session: Session, steps: list[StepTimes]) -> dict[str, Any]:
    """Return this rank's measurements of some steps, times in milliseconds."""
    actions: dict[str, list[float]] = defaultdict(list)
    """By stage and kind: of every micro-batch, all its slices together."""
    device_ms = sum(item.device_s for step in steps for item in step.actions) * 1e3
    for step in steps:
        of_microbatch: dict[tuple[str, int], float] = defaultdict(float)
        for item in step.actions:
            name = f"{item.action.stage}{item.action.kind}"
            of_microbatch[name, item.action.microbatch] += (item.end_s - item.start_s) * 1e3
        for (name, _), spent_ms in of_microbatch.items():
            actions[name].append(spent_ms)
    steps_ms = [step.step_s * 1e3 for step in steps]
    update_ms = [step.update_s * 1e3 for step in steps if step.update_s is not None]
    computing_ms = sum(map(sum, actions.values()))
    busy_ms = sum(step.busy_s for step in steps) * 1e3
    sent: dict[tuple[int, int, bool], tuple[int, int]] = {}
    for step in steps:
        for key, (messages, num_bytes) in step.sent.items():
            before = sent.get(key, (0, 0))
            sent[key] = (before[0] + messages, before[1] + num_bytes)
    return {
        "actions": {name: _median(times) for name, times in actions.items()},
        "steps_ms": steps_ms,
        "reduce_ms": _median([step.reduce_s * 1e3 for step in steps]),
        "update_ms": _median(update_ms),
        "peak_bytes": session.memory.measured_bytes,
        "contention": computing_ms / device_ms if device_ms else None,
        "idle": 1 - busy_ms / sum(steps_ms) if steps_ms else None,
        "sent": sent,
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
        measured_backward_ms=_backward_ms(measured["actions"], index),
        predicted_reduce_ms=predicted.reduce_ms,
        measured_reduce_ms=measured["reduce_ms"],
        predicted_update_ms=predicted.update_ms,
        measured_update_ms=measured["update_ms"],
        measured_idle_share=measured["idle"],
        measured_contention=measured["contention"],
        predicted_peak_bytes=predicted.peak_bytes,
        measured_peak_bytes=measured["peak_bytes"],
        predicted_backward_input_ms=predicted.backward_input_ms,
        measured_backward_input_ms=measured["actions"].get(f"{index}I"),
        predicted_backward_weight_ms=predicted.backward_weight_ms,
        measured_backward_weight_ms=measured["actions"].get(f"{index}W"),
    )


def _backward_ms(actions: dict[str, float], stage: int) -> float | None:
    """Return the median time of a stage's backwards; in two parts (zero-bubble), the sum of theirs."""
    parts = [actions.get(f"{stage}{kind}") for kind in "IW"]
    if f"{stage}B" in actions or None in parts:
        return actions.get(f"{stage}B")
    return sum(part for part in parts if part is not None)


def _border_report(
    plan: Plan,
    border: Border,
    sent: Sequence[dict[tuple[int, int, bool], tuple[int, int]]],
    num_steps: int,
) -> BorderReport:
    """Return what a border's messages were, from what each rank sent in all counted steps."""
    routes = plan.pipeline().routes
    pairs = zip(routes[border.source], routes[border.target], strict=True)
    crossing = sum(sender != receiver for sender, receiver in pairs)

    def per_step(forward: bool, position: int) -> float | None:
        if not num_steps:
            return None
        key = (border.source, border.target, forward)
        return sum(own.get(key, (0, 0))[position] for own in sent) / num_steps

    return BorderReport(
        source=border.source,
        target=border.target,
        predicted_forward_bytes=crossing * border.forward_bytes(plan.microbatch_size),
        measured_forward_bytes=per_step(True, 1),
        predicted_backward_bytes=crossing * border.backward_bytes(plan.microbatch_size),
        measured_backward_bytes=per_step(False, 1),
        forward_messages=per_step(True, 0),
        backward_messages=per_step(False, 0),
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
    lines += part_lines(report.replicas)
    lines += _border_lines(report.borders)
    if report.measured_step_ms is not None:
        ratio = report.measured_step_ms / report.predicted_step_ms
        lines.append(
            f"step: predicted {report.predicted_step_ms:.2f} ms, measured {report.measured_step_ms:.2f} ms "
            f"(median of {report.num_steps} steps), measured / predicted = {ratio:.3f}"
        )
    else:
        lines.append(f"step: predicted {report.predicted_step_ms:.2f} ms, too few steps to measure")
    return "\n".join(lines)


def part_lines(replicas: Sequence[ReplicaReport]) -> list[str]:
    """Return, for backwards that ran in two parts (zero-bubble), what the parts took."""
    return [
        f"stage {r.stage}, rank {r.rank}: backward in two parts, of the inputs "
        f"{_pair(r.predicted_backward_input_ms, r.measured_backward_input_ms)}, of the weights "
        f"{_pair(r.predicted_backward_weight_ms, r.measured_backward_weight_ms)}"
        for r in replicas
        if r.measured_backward_input_ms is not None
    ]


def _pair(predicted: float | None, measured: float | None) -> str:
    return " / ".join("-" if value is None else f"{value:.2f}" for value in (predicted, measured))


def _border_lines(borders: Sequence[BorderReport]) -> list[str]:
    """Return what crossed the borders, as lines of a table; none without borders."""
    if not borders:
        return []
    lines = ["border         forward bytes/step     backward bytes/step  messages"]
    for b in borders:
        messages = (b.forward_messages or 0) + (b.backward_messages or 0)
        lines.append(
            f"{b.source:3} -> {b.target:2}  "
            f"{_bytes(b.predicted_forward_bytes, b.measured_forward_bytes):>22}  "
            f"{_bytes(b.predicted_backward_bytes, b.measured_backward_bytes):>22}  {messages:8.0f}"
        )
    return lines


def _bytes(predicted: int, measured: float | None) -> str:
    return f"{predicted} / " + ("-" if measured is None else f"{measured:.0f}")
