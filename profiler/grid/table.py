"""The table of a grid: JSON or CSV, the fit of the context's part, and a plot.

Source: Li et al., "TeraPipe", ICML 2021, equation 9: a slice of i tokens after j takes t(i, j) = t(i, 0) +
t_context(i, j), where t_context(i, j) = a0 + a1 i + a2 j + a3 i j.
"""

import csv
import io
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from stagewright.document import Format, InputError, Record, save_record, write_atomically
from stagewright.profiler.plot import new_figure, save_figure

GRID_FORMAT = Format(name="stagewright.grid", version=1)
SUFFIXES = (".json", ".csv")
NUM_COEFFICIENTS = 4


class GridPoint(Record):
    """One size and its times: medians, and the distances between the quartiles."""

    batch_size: int
    layers: int
    width: int
    length: int
    context: int
    forward_ms: float
    backward_ms: float
    forward_spread_ms: float
    backward_spread_ms: float
    repeats: int


class ContextFit(Record):
    """What a context adds to the forward and backward of one model, in ms: a0 + a1 i + a2 j + a3 i j."""

    batch_size: int
    layers: int
    width: int
    coefficients_ms: tuple[float, ...]
    mean_error: float
    """Of the whole time, over the measured one."""
    worst_error: float


class Grid(Record):
    """All points of one task on one device."""

    task: str
    device_type: str
    device: str
    emulated_slowdown: float | None
    dtype: str
    torch_version: str
    points: tuple[GridPoint, ...]
    fits: tuple[ContextFit, ...]
    """Of the models with enough points."""


def demand_table(path: Path) -> None:
    """Raise InputError if a grid cannot be written as this file: another suffix."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: is {path.suffix!r}, expected .json or .csv for --grid")


def save_grid(path: Path, grid: Grid) -> Path:
    """Write the table; as CSV it is the points alone, with the device in each line. Return the file."""
    if path.suffix == ".json":
        save_record(path, GRID_FORMAT, grid)
        return path
    text = io.StringIO()
    names = GridPoint.__struct_fields__
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["device_type", "emulated_slowdown", *names])
    slowdown = "" if grid.emulated_slowdown is None else grid.emulated_slowdown
    for point in grid.points:
        writer.writerow([grid.device_type, slowdown, *(getattr(point, name) for name in names)])
    write_atomically(path, text.getvalue().encode())
    return path


def context_fits(points: tuple[GridPoint, ...]) -> tuple[ContextFit, ...]:
    """Return the fit for each model and micro-batch size whose points suffice, by least relative squares.

    A length takes part if it was measured without context, too.
    """
    fits = []
    for (batch_size, layers, width), group in groupby(points, _model_of):
        own = list(group)
        alone = {p.length: _total_ms(p) for p in own if p.context == 0}
        used = [p for p in own if p.context > 0 and p.length in alone]
        terms = np.array(
            [[1, p.length, p.context, p.length * p.context] for p in used], dtype=float
        )
        if not used or np.linalg.matrix_rank(terms) < NUM_COEFFICIENTS:
            continue
        total = np.array([_total_ms(p) for p in used])
        extra = total - np.array([alone[p.length] for p in used])
        scale = np.abs(terms).max(axis=0)
        found = (
            np.linalg.lstsq(terms / scale / total[:, None], extra / total, rcond=None)[0] / scale
        )
        errors = np.abs(terms @ found - extra) / total
        fits.append(
            ContextFit(
                batch_size=batch_size, layers=layers, width=width,
                coefficients_ms=tuple(map(float, found)),
                mean_error=float(errors.mean()), worst_error=float(errors.max()),
            )
        )  # fmt: skip
    return tuple(fits)


def _model_of(point: GridPoint) -> tuple[int, int, int]:
    return point.batch_size, point.layers, point.width


def _total_ms(point: GridPoint) -> float:
    return point.forward_ms + point.backward_ms


def text(grid: Grid) -> str:
    """Return the points as a table for people."""
    slowdown = grid.emulated_slowdown
    kind = "measured" if slowdown is None else f"emulated: measured x {slowdown:g}"
    lines = [
        f"{grid.task} on {grid.device_type} ({grid.device}), {grid.dtype}; times {kind}, medians",
        "micro-batch  layers  width  length  context   forward ms  backward ms  repeats",
    ]
    lines += [
        f"{p.batch_size:11d}  {p.layers:6d}  {p.width:5d}  {p.length:6d}  {p.context:7d}"
        f"  {p.forward_ms:11.3f}  {p.backward_ms:11.3f}  {p.repeats:7d}"
        for p in grid.points
    ]
    lines += [
        f"micro-batch {f.batch_size}, {f.layers} layers, width {f.width}: a context of j tokens adds "
        + " + ".join(
            f"{a:.3g}{n}" for a, n in zip(f.coefficients_ms, ("", " i", " j", " ij"), strict=True)
        )
        + f" ms to i tokens; fitted, off by {f.mean_error:.1%} in the mean, {f.worst_error:.1%} at most"
        for f in grid.fits
    ]
    return "\n".join(lines)


def write_grid_plot(path: Path, grid: Grid) -> Path:
    """Write forward and backward over the length, one line by model and context; return the file."""
    figure = new_figure(13, 6)
    slowdown = grid.emulated_slowdown
    kind = "measured" if slowdown is None else f"emulated x {slowdown:g}"
    figure.suptitle(f"{grid.task} on {grid.device_type} ({grid.device}), times {kind}", fontsize=10)
    panels: Any = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, what in zip(panels, ("forward", "backward"), strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for p in grid.points:
            multiple, rest = divmod(p.context, p.length)
            context = f"{multiple}x" if p.context and not rest else str(p.context)
            name = f"{p.layers} layers, width {p.width}, batch {p.batch_size}, context {context}"
            lines.setdefault(name, []).append((p.length, getattr(p, f"{what}_ms")))
        for name, line in lines.items():
            axes.plot(*zip(*line, strict=True), marker=".", linewidth=0.8, label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("tokens of the slice")
        axes.set_ylabel("ms")
        axes.set_title(what, fontsize=9)
    panels[0].legend(fontsize=6)
    return save_figure(path, figure)
