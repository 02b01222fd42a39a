"""Draws the table of plans: predicted cost by rank, executable plans apart from the others."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagewright.document import InputError, write_atomically

FORMATS = (".png", ".svg", ".pdf")


def check_can_draw(path: Path) -> None:
    """Find out before a long search whether a picture can be drawn.

    Raises:
        InputError: matplotlib is not installed, or the suffix is none that it writes.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: suffix is {path.suffix!r}, expected {', '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401 - heavy, and not always installed
    except ImportError:
        raise InputError(
            "matplotlib is not installed, which draws the plot; pip install 'stagewright[report]', "
            "or leave --plot out"
        ) from None


def draw_plans(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a picture of the rows of report.plan_rows()."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for executable, label, colour in (
        (False, "not executable", "#c9c9c9"),
        (True, "executable", "#1f6fb4"),
    ):
        chosen = [row for row in rows if row["executable"] is executable]
        axes.scatter(
            [row["rank"] for row in chosen],
            [row["cost"] for row in chosen],
            s=8,
            color=colour,
            label=f"{label} ({len(chosen)})",
        )
    axes.set(xlabel="rank", ylabel="cost of a step in ms (predicted)", yscale="log")
    axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower(), dpi=150)
    write_atomically(path, content.getvalue())
