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
    _save(figure, path)


def draw_counts(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a picture of search steps per row: Metis, its fork, and the published counts as marks.

    Args:
        path: picture to write.
        rows: objects with row, devices, layers, and {metis,fork}_{count,published}.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    places = list(range(len(rows)))
    for offset, kind, colour in ((-0.2, "metis", "#c9c9c9"), (0.2, "fork", "#1f6fb4")):
        at = [place + offset for place in places]
        axes.bar(at, [row[f"{kind}_count"] for row in rows], width=0.38, color=colour, label=kind)
        published = [row[f"{kind}_published"] for row in rows]
        axes.plot(at, published, "k_", markersize=22, label="published" if offset > 0 else None)
    labels = [f"row {row['row']}: {row['layers']} layers, {row['devices']} GPUs" for row in rows]
    axes.set_xticks(places, labels)
    axes.set(ylabel="search steps", yscale="log")
    axes.legend()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower(), dpi=150)
    write_atomically(path, content.getvalue())
