"""The report as one HTML page that needs nothing else: tables, and pictures as inline SVG.

Everything that came from a file is escaped, and the page forbids the browser to fetch or run anything.
"""

from collections.abc import Iterable, Sequence
from html import escape

from stagewright.document import Record

from .metrics import EpochMetrics
from .pictures import loss_svg, memory_svg, timeline_svg
from .report import BorderReport, ReplicaReport, RunReport, part_lines

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1240px; padding: 0 1em; }
table { border-collapse: collapse; margin: .6em 0; } caption { text-align: left; color: #555; }
th, td { border: 1px solid #ccc; padding: .25em .7em; text-align: right; } th { background: #f2f4f6; }
td:first-child, th:first-child { text-align: left; } svg { width: 100%; height: auto; }
.grid { stroke: #ddd; stroke-width: 1; } .note { color: #555; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


class RunHistory(Record):
    """History as the report's file has it: a loss that was not finite is null there."""

    first_step: int
    losses: tuple[float | None, ...]
    epochs: tuple[EpochMetrics, ...]


class RunFile(Record):
    """What stagewright train --report writes."""

    history: RunHistory
    report: RunReport


def page_of(run: RunFile) -> str:
    """Return the page's text."""
    report, history = run.report, run.history
    title = f"Run of {report.task}"
    labels = _rank_labels(report.replicas)
    sections = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{line}</p>" for line in _summary(report)),
        "<h2>Stages</h2>",
        _stages_table(report.replicas),
        *(f"<p>{line}</p>" for line in part_lines(report.replicas)),
        "<h2>Timeline (measured)</h2>",
    ]
    if report.timeline is None:
        sections.append("<p>Too few steps to measure.</p>")
    else:
        sections.append(timeline_svg(report.timeline, labels))
    sections += ["<h2>Peak memory</h2>", memory_svg(_memory_rows(report.replicas, labels))]
    if report.borders:
        sections += ["<h2>Traffic</h2>", _borders_table(report.borders)]
    sections += ["<h2>Losses (measured)</h2>", loss_svg(history.losses, history.first_step)]
    if history.epochs:
        sections.append(_epochs_table(history.epochs))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def _summary(report: RunReport) -> list[str]:
    """Return the lines at the top, as HTML."""
    lines = [
        f"Schedule {escape(report.schedule)}, {report.num_microbatches} micro-batches of "
        f"{report.microbatch_size} samples, {escape(report.dtype)}."
    ]
    if report.measured_step_ms is None:
        lines.append(
            f"Step: predicted {report.predicted_step_ms:.2f} ms, too few steps to measure."
        )
    else:
        ratio = report.measured_step_ms / report.predicted_step_ms
        lines.append(
            f"Step: predicted {report.predicted_step_ms:.2f} ms (by the simulator, before the run), measured "
            f"<b>{report.measured_step_ms:.2f} ms</b> (median of {report.num_steps} steps, slowest rank), "
            f"measured / predicted = <b>{ratio:.3f}</b>."
        )
    if report.schedule != report.predicted_schedule:
        lines.append(
            f"The predictions are for schedule {escape(report.predicted_schedule)}, which the plan has."
        )
    emulated = {
        replica.device_type: replica.emulated_slowdown
        for replica in report.replicas
        if replica.emulated_slowdown is not None
    }
    for name, factor in emulated.items():
        lines.append(
            f"Device type {escape(name)} is <b>emulated</b>: another device, slowed down {factor:g} times."
        )
    return lines


def _rank_labels(replicas: Sequence[ReplicaReport]) -> list[str]:
    """Return by rank what it runs, and on what."""
    stages: dict[int, list[str]] = {}
    types: dict[int, str] = {}
    for replica in replicas:
        stages.setdefault(replica.rank, []).append(str(replica.stage))
        mark = f" (x{replica.emulated_slowdown:g})" if replica.emulated_slowdown else ""
        types[replica.rank] = f"{replica.device_type}{mark}"
    return [
        f"rank {rank}: stage {', '.join(stages[rank])}, {types[rank]}" for rank in sorted(stages)
    ]


def _memory_rows(
    replicas: Sequence[ReplicaReport], labels: Sequence[str]
) -> list[tuple[str, int, int | None]]:
    """Return per rank its label, the predicted bytes of all its stages and the measured ones."""
    predicted: dict[int, int] = {}
    measured: dict[int, int | None] = {}
    for replica in replicas:
        predicted[replica.rank] = predicted.get(replica.rank, 0) + replica.predicted_peak_bytes
        measured[replica.rank] = replica.measured_peak_bytes
    return [(labels[rank], predicted[rank], measured[rank]) for rank in sorted(predicted)]


def _stages_table(replicas: Sequence[ReplicaReport]) -> str:
    head = (
        "stage", "rank", "device type", "forward", "backward", "gradient sum", "update", "idle",
        "contention",
    )  # fmt: skip
    rows = [
        (
            str(r.stage),
            str(r.rank),
            r.device_type
            + (f" (emulated x{r.emulated_slowdown:g})" if r.emulated_slowdown else ""),
            _times(r.predicted_forward_ms, r.measured_forward_ms),
            _times(r.predicted_backward_ms, r.measured_backward_ms),
            _times(r.predicted_reduce_ms, r.measured_reduce_ms),
            _times(r.predicted_update_ms, r.measured_update_ms),
            "-" if r.measured_idle_share is None else f"{r.measured_idle_share:.0%}",
            "-" if r.measured_contention is None else f"x{r.measured_contention:.2f}",
        )
        for r in replicas
    ]
    caption = (
        "Medians in ms, predicted / measured (ratio): forward and backward of one micro-batch; gradient sum "
        "(measured with the wait for the other replicas) and update once a step. Idle: the part of the steps "
        "in which the rank computed nothing. Contention: time of its computations over what its device "
        "spent on them."
    )
    return _table(head, rows, caption)


def _borders_table(borders: Sequence[BorderReport]) -> str:
    head = ("border", "forward bytes", "backward bytes", "forward messages", "backward messages")
    rows = [
        (
            f"stage {b.source} to {b.target}",
            _counts(b.predicted_forward_bytes, b.measured_forward_bytes),
            _counts(b.predicted_backward_bytes, b.measured_backward_bytes),
            "-" if b.forward_messages is None else f"{b.forward_messages:g}",
            "-" if b.backward_messages is None else f"{b.backward_messages:g}",
        )
        for b in borders
    ]
    caption = "Per step between ranks: bytes predicted / measured (ratio); messages measured."
    return _table(head, rows, caption)


def _epochs_table(epochs: Sequence[EpochMetrics]) -> str:
    head = ("epoch", "steps done", "train loss", "held-out loss", "held-out metric")
    rows = [
        (
            str(e.epoch + 1),
            str(e.step),
            _number(e.train_loss),
            _number(e.test_loss),
            _number(e.test_metric),
        )
        for e in epochs
    ]
    return _table(head, rows, "Measured.")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], caption: str) -> str:
    """Return a table; all its texts are escaped."""
    lines = [f"<table><caption>{escape(caption)}</caption>", _row("th", head)]
    return "\n".join([*lines, *(_row("td", row) for row in rows), "</table>"])


def _row(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _times(predicted: float, measured: float | None) -> str:
    if measured is None:
        return f"{predicted:.2f} / -"
    ratio = f" ({measured / predicted:.2f})" if predicted else ""
    return f"{predicted:.2f} / {measured:.2f}{ratio}"


def _counts(predicted: int, measured: float | None) -> str:
    if measured is None:
        return f"{predicted} / -"
    ratio = f" ({measured / predicted:.3f})" if predicted else ""
    return f"{predicted} / {measured:.0f}{ratio}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
