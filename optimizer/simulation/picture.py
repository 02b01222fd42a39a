"""Draws a predicted timeline as SVG: a row per rank, a box per action."""

from pathlib import Path
from xml.sax.saxutils import escape

from stagewright.document import write_atomically
from stagewright.plan import Plan
from stagewright.schedule import Action

from .simulate import Event, Timeline

_WIDTH, _ROW, _LEFT, _TOP = 1200, 34, 150, 30
_COLOURS = {
    "F": "#7fb2e5",
    "B": "#e5b27f",
    "I": "#e5b27f",
    "W": "#d9d08a",
    "reduce": "#b9a3d6",
    "update": "#9fcf9f",
}


def write_picture(path: Path, plan: Plan, timeline: Timeline, schedule: str) -> None:
    """Write the timeline of one step of a schedule, which the title names."""
    write_atomically(path, timeline_svg(plan, timeline, schedule).encode())


def timeline_svg(plan: Plan, timeline: Timeline, schedule: str) -> str:
    """Return the picture's text; boxes have titles with their times."""
    scale = (_WIDTH - _LEFT - 10) / timeline.end_ms if timeline.end_ms else 0.0
    height = _TOP + _ROW * len(timeline.ranks) + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<text x="{_LEFT}" y="18">{escape(_title(plan, timeline, schedule))}</text>',
    ]
    labels = rank_labels(plan)
    for rank, row in enumerate(timeline.ranks):
        top = _TOP + _ROW * rank
        lines.append(f'<text x="4" y="{top + 20}">{escape(labels[rank])}</text>')
        lines += [_box(event, top, scale) for event in row]
    return "\n".join([*lines, "</svg>", ""])


def _title(plan: Plan, timeline: Timeline, schedule: str) -> str:
    emulated = "".join(f", {name} emulated x{factor:g}" for name, factor in plan.slowdowns.items())
    what = "one step of" if timeline.steady_ms is None else "steps without flush, one every"
    return f"{schedule}: {what} {timeline.step_ms:.2f} ms (predicted{emulated})"


def rank_labels(plan: Plan) -> dict[int, str]:
    """Return for each rank, for people, its stages and its device type."""
    return {
        rank: f"rank {rank}: stage{'s' * (len(own) > 1)} {' '.join(map(str, own))}, "
        f"{next(iter(own.values())).device_type}"
        for rank, own in plan.stages_of_ranks.items()
    }


def _box(event: Event, top: int, scale: float) -> str:
    action = isinstance(event.what, Action)
    colour = _COLOURS[event.what.kind if isinstance(event.what, Action) else str(event.what)]
    left, width = _LEFT + event.start_ms * scale, (event.end_ms - event.start_ms) * scale
    label = str(event.what.microbatch) if isinstance(event.what, Action) else str(event.what)
    title = f"{event.what}: {event.start_ms:.3f} to {event.end_ms:.3f} ms"
    text = ""
    if width > (9 if action else 40):
        text = (
            f'<text x="{left + width / 2:.2f}" y="{top + 20}" text-anchor="middle">{label}</text>'
        )
    return (
        f'<g><title>{escape(title)}</title><rect x="{left:.2f}" y="{top + 4}" width="{width:.2f}" '
        f'height="{_ROW - 10}" fill="{colour}" stroke="#444" stroke-width="0.5"/>{text}</g>'
    )
