"""Links as a picture: heat maps over all pairs of ranks, and time over message size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .links import Curve, Links, PairLink
from .plot import new_figure, save_figure

MOST_NUMBERED = 12
"""Ranks above which the cells hold no numbers."""


def write_picture(path: Path, links: Links) -> Path:
    """Write heat maps of latency, bandwidth and both ways at once, and the curves; return the file."""
    figure = new_figure(13, 10)
    hosts = ", ".join(dict.fromkeys(links.servers))
    figure.suptitle(
        f"{len(links.servers)} ranks over {links.backend} on {hosts}; measured", fontsize=10
    )
    (latency, bandwidth), (both, curves) = figure.subplots(2, 2)
    _heat_map(latency, "latency, ms", links, lambda pair: pair.latency_ms)
    _heat_map(bandwidth, "bandwidth, MB/s", links, lambda p: p.bandwidth_bytes_per_s / 1e6)
    title = "largest message, both ways at once: time over one way"
    _heat_map(both, title, links, lambda pair: pair.both_over_one)
    for pair in links.pairs:
        _line(curves, pair.one_way_ms, "tab:blue", "one way")
        _line(curves, pair.both_ways_ms, "tab:orange", "both ways at once")
        if pair.all_reduce_ms is not None:
            _line(curves, pair.all_reduce_ms, "tab:green", "all-reduce of two")
    _line(curves, links.all_reduce_ms, "black", f"all-reduce of {len(links.servers)}")
    curves.set_xscale("log")
    curves.set_yscale("log")
    curves.set_xlabel("bytes")
    curves.set_ylabel("ms")
    names: dict[str, Any] = {}
    for handle, name in zip(*curves.get_legend_handles_labels(), strict=True):
        names.setdefault(name, handle)
    curves.legend(handles=list(names.values()), fontsize=8)
    curves.set_title("by pair", fontsize=9)
    return save_figure(path, figure)


def _heat_map(axes: Any, title: str, links: Links, figure_of: Callable[[PairLink], float]) -> None:
    size = len(links.servers)
    values = np.full((size, size), np.nan)
    for pair in links.pairs:
        values[pair.first, pair.second] = values[pair.second, pair.first] = figure_of(pair)
    image = axes.imshow(values, cmap="viridis")
    axes.figure.colorbar(image, ax=axes)
    labels = [f"{rank} {host}"[:14] for rank, host in enumerate(links.servers)]
    axes.set_xticks(range(size), labels, rotation=90, fontsize=7)
    axes.set_yticks(range(size), labels, fontsize=7)
    axes.set_title(title, fontsize=9)
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values):
        if size <= MOST_NUMBERED and not np.isnan(value):
            ink = "white" if value < middle else "black"
            text = f"{value:.3g}"
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)


def _line(axes: Any, curve: Curve, colour: str, name: str) -> None:
    sizes = [int(size) for size in curve]
    axes.plot(sizes, list(curve.values()), color=colour, marker=".", linewidth=0.8, label=name)
