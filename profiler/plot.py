"""Curves by layer: time, saved bytes and parameter bytes, and their sums up to each layer."""

import importlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stagewright.document import InputError, write_atomically
from stagewright.graph import LayerGraph

SUFFIXES = (".svg", ".png", ".pdf")
MOST_LABELS = 40
"""Names of layers below the curves."""


def demand_plot(path: Path) -> None:
    """Raise InputError if no plot can be written there: another suffix, or matplotlib is missing."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: is {path.suffix!r}, expected one of {', '.join(SUFFIXES)}")
    try:
        importlib.import_module("matplotlib")
    except ModuleNotFoundError:
        raise InputError(
            f"{path}: matplotlib, which draws it, is missing; install stagewright[report]"
        ) from None


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of some inches that no window shows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(path: Path, figure: Any) -> Path:
    """Write a figure in the format of the file's suffix, the same bytes each time; return the file.

    Raises:
        InputError: it cannot be written.
    """
    from matplotlib import rc_context

    content = io.BytesIO()
    date = {".svg": "Date", ".pdf": "CreationDate"}.get(path.suffix)
    with rc_context({"svg.hashsalt": "stagewright"}):
        metadata = {} if date is None else {date: None}
        figure.savefig(content, format=path.suffix[1:], dpi=150, metadata=metadata)
    write_atomically(path, content.getvalue())
    return path


def write_plot(path: Path, graph: LayerGraph) -> Path:
    """Write the curves of a layer graph at its largest micro-batch size; return the file."""
    size = graph.batch_sizes[-1]
    costs = [layer.cost_at(size) for layer in graph.steps]
    emulated = "measured" if graph.emulation is None else f"emulated x {graph.emulation.slowdown:g}"
    figure = new_figure(12, 9)
    device = f"{graph.device_type} ({graph.device})"
    title = f"{graph.model.task} on {device}, micro-batch {size}, times {emulated}"
    figure.suptitle(title, fontsize=10)
    time, saved, parameters = figure.subplots(3, 1, sharex=True)
    forward = [cost.forward_ms for cost in costs]
    backward = [cost.backward_ms for cost in costs]
    _panel(time, {"forward": forward, "backward": backward}, "ms")
    if all(cost.saved_bytes is not None for cost in costs):
        _panel(saved, {"saved": [(cost.saved_bytes or 0) / 1e6 for cost in costs]}, "MB")
    else:
        saved.set_title("saved bytes were not measured", fontsize=9)
    _panel(parameters, {"parameters": [step.parameter_bytes / 1e6 for step in graph.steps]}, "MB")
    step = -(-len(costs) // MOST_LABELS)
    names = [layer.name for layer in graph.steps]
    parameters.set_xticks(range(0, len(names), step), names[::step], rotation=90, fontsize=7)
    return save_figure(path, figure)


def _panel(axes: Any, bars: dict[str, Sequence[float]], unit: str) -> None:
    """Draw stacked bars by layer, and on an axis of its own the sum up to each."""
    places = np.arange(len(next(iter(bars.values()))))
    below = np.zeros(len(places))
    for name, values in bars.items():
        axes.bar(places, values, bottom=below, width=0.9, label=name)
        below = below + np.asarray(values, dtype=float)
    axes.set_ylabel(unit)
    summed = axes.twinx()
    summed.plot(places, np.cumsum(below), color="black", linewidth=1, label="sum so far")
    summed.set_ylim(bottom=0)
    summed.set_ylabel(f"sum, {unit}")
    handles = [*axes.get_legend_handles_labels()[0], *summed.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, loc="upper left", fontsize=8)
