"""Plots are written, the same each time, in the format of the suffix."""

from pathlib import Path

import pytest

from stagewright.document import InputError
from stagewright.graph import LayerGraph
from stagewright.profiler.plot import demand_plot, write_plot

GRAPH = Path(__file__).parents[1] / "golden" / "graph.v4.json"


def test_a_plot_is_the_same_each_time(tmp_path: Path) -> None:
    graph = LayerGraph.load(GRAPH)
    path = tmp_path / "curves.svg"
    demand_plot(path)
    first = write_plot(path, graph).read_bytes()
    assert write_plot(path, graph).read_bytes() == first
    assert b"<svg" in first
    assert write_plot(tmp_path / "curves.png", graph).read_bytes().startswith(b"\x89PNG")


def test_another_suffix_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is '.bmp', expected one of .svg, .png, .pdf"):
        demand_plot(tmp_path / "curves.bmp")
