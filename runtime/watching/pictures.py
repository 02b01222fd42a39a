"""Pictures of a run as SVG text, to stand inside a page. What comes from a file is escaped."""

import math
from collections.abc import Sequence
from html import escape

from .timeline import MeasuredTimeline, TimelineEvent

_WIDTH, _LEFT, _RIGHT, _TOP = 1200, 190, 20, 26
_ROW = 34
_INNER = _WIDTH - _LEFT - _RIGHT
_COLOURS = {"F": "#7fb2e5", "B": "#e5b27f", "I": "#e58f7f", "W": "#e5d67f"}
_OTHER_COLOURS = {"reduce": "#b9a3d6", "update": "#9fcf9f"}
_LEGEND = (
    ("forward", _COLOURS["F"]),
    ("backward", _COLOURS["B"]),
    ("its inputs' part", _COLOURS["I"]),
    ("its weights' part", _COLOURS["W"]),
    ("gradient sum, with waits", _OTHER_COLOURS["reduce"]),
    ("update", _OTHER_COLOURS["update"]),
)


def timeline_svg(timeline: MeasuredTimeline, labels: Sequence[str]) -> str:
    """Return one measured step: a row per rank, a box per action, an axis in ms.

    Args:
        labels: by rank.
    """
    events = [event for rank in timeline.ranks for event in rank]
    end_ms = max((event.end_ms for event in events), default=0.0) or 1.0
    bottom = _TOP + _ROW * len(timeline.ranks)
    parts = [_open(bottom + 56, "Timeline of one measured step")]
    for tick in _ticks(end_ms):
        x = _LEFT + _INNER * tick / end_ms
        parts.append(
            f'<line x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{bottom}" class="grid"/>'
        )
        parts.append(_text(x, _TOP - 10, f"{tick:g} ms", "middle"))
    for rank, row in enumerate(timeline.ranks):
        top = _TOP + _ROW * rank
        parts.append(_text(4, top + 20, labels[rank], "start"))
        parts += [_event_box(event, top, _INNER / end_ms) for event in row]
    parts += _legend(bottom + 30)
    return "".join([*parts, "</svg>"])


def memory_svg(rows: Sequence[tuple[str, int, int | None]]) -> str:
    """Return bars of the peak memory: predicted, and measured where it was, in bytes by label."""
    largest = max((max(predicted, measured or 0) for _, predicted, measured in rows), default=0)
    scale = (_INNER - 130) / (largest or 1)
    parts = [_open(_TOP + _ROW * len(rows) + 10, "Peak memory by rank")]
    parts.append(_text(_LEFT, 16, "upper bar: predicted; lower bar: measured", "start"))
    for position, (label, predicted, measured) in enumerate(rows):
        top = _TOP + _ROW * position
        parts.append(_text(4, top + 20, label, "start"))
        bars = [(predicted, 3, "#c8d6e5"), (measured, 16, "#5b8db8")]
        for value, offset, colour in bars:
            if value is None:
                parts.append(_text(_LEFT + 4, top + offset + 11, "not measured", "start"))
                continue
            parts.append(_rectangle(_LEFT, top + offset, value * scale, 12, colour))
            text = f"{value / 2**20:.2f} MiB"
            parts.append(_text(_LEFT + value * scale + 6, top + offset + 11, text, "start"))
    return "".join([*parts, "</svg>"])


def loss_svg(losses: Sequence[float | None], first_step: int) -> str:
    """Return the curve of the steps' losses; it breaks where a loss is not finite."""
    finite = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    height, bottom = 260, 220
    parts = [_open(height, "Loss by step")]
    if not finite:
        return "".join([*parts, _text(_LEFT, 40, "no finite loss", "start"), "</svg>"])
    low, high = min(finite), max(finite)
    span, steps = (high - low) or 1.0, max(1, len(losses) - 1)

    def point(step: int, loss: float) -> str:
        y = bottom - (bottom - _TOP) * (loss - low) / span
        return f"{_LEFT + _INNER * step / steps:.1f},{y:.1f}"

    for value in (low, (low + high) / 2, high):
        y = bottom - (bottom - _TOP) * (value - low) / span
        parts.append(
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" class="grid"/>'
        )
        parts.append(_text(_LEFT - 8, y + 4, f"{value:.4g}", "end"))
    for run in _finite_runs(losses):
        points = " ".join(point(step, loss) for step, loss in run)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="#2f6f9f" stroke-width="1.5"/>'
        )
    parts.append(_text(_LEFT, height - 16, f"step {first_step + 1}", "start"))
    parts.append(_text(_WIDTH - _RIGHT, height - 16, f"step {first_step + len(losses)}", "end"))
    return "".join([*parts, "</svg>"])


def _finite_runs(losses: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    runs: list[list[tuple[int, float]]] = [[]]
    for step, loss in enumerate(losses):
        if loss is not None and math.isfinite(loss):
            runs[-1].append((step, loss))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _event_box(event: TimelineEvent, top: int, scale: float) -> str:
    kind = event.what.lstrip("0123456789")
    colour = _OTHER_COLOURS.get(event.what) or _COLOURS.get(kind[:1], "#cccccc")
    left, width = _LEFT + event.start_ms * scale, (event.end_ms - event.start_ms) * scale
    title = f"{event.what}: {event.start_ms:.3f} to {event.end_ms:.3f} ms"
    is_action = event.what not in _OTHER_COLOURS
    label = kind[1:] if is_action else event.what
    text = ""
    if width > (7 * len(label) + 3):
        text = _text(left + width / 2, top + 20, label, "middle")
    box = _rectangle(left, top + 4, width, _ROW - 10, colour)
    return f"<g><title>{escape(title)}</title>{box}{text}</g>"


def _legend(y: float) -> list[str]:
    parts, x = [], float(_LEFT)
    for name, colour in _LEGEND:
        parts.append(_rectangle(x, y, 14, 14, colour))
        parts.append(_text(x + 19, y + 12, name, "start"))
        x += 40 + 7 * len(name)
    return parts


def _ticks(end: float) -> list[float]:
    """Return round numbers from 0 up to an end, at most ten."""
    step = 10.0 ** math.floor(math.log10(end))
    while end / step > 10:
        step *= 2
    while end / step < 4:
        step /= 2
    return [step * number for number in range(math.floor(end / step) + 1)]


def _open(height: float, name: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(name)}" font-family="sans-serif" font-size="11">'
    )


def _rectangle(x: float, y: float, width: float, height: float, colour: str) -> str:
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(width, 0.2):.2f}" height="{height:.2f}" '
        f'fill="{colour}" stroke="#444" stroke-width="0.4"/>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
