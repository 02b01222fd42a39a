"""The table: what a fit finds, against points that are made from known coefficients."""

import csv
from pathlib import Path

import msgspec
import pytest

from stagewright.profiler.grid.table import Grid, GridPoint, context_fits, save_grid

COEFFICIENTS = (0.5, 0.01, 0.002, 0.0003)


def point(length: int, context: int) -> GridPoint:
    a0, a1, a2, a3 = COEFFICIENTS
    extra = a0 + a1 * length + a2 * context + a3 * length * context if context else 0.0
    return GridPoint(
        batch_size=1, layers=2, width=64, length=length, context=context,
        forward_ms=1.0 + 0.1 * length**2, backward_ms=extra, forward_spread_ms=0.0,
        backward_spread_ms=0.0, repeats=1,
    )  # fmt: skip


def test_the_fit_finds_what_a_context_adds() -> None:
    points = tuple(point(i, j) for i in (8, 16, 64) for j in (0, i, 4 * i))
    (fit,) = context_fits(points)
    assert fit.coefficients_ms == pytest.approx(COEFFICIENTS)
    assert fit.worst_error < 1e-9


def test_too_few_points_are_not_fitted() -> None:
    assert context_fits((point(8, 0), point(8, 8), point(16, 0), point(16, 16))) == ()
    assert context_fits(tuple(point(i, 4) for i in (1, 2, 3, 4, 5))) == ()


def test_csv_and_json_hold_the_same_points(tmp_path: Path) -> None:
    points = (point(8, 0), point(8, 16))
    grid = Grid(
        task="t", device_type="slow", device="a processor", emulated_slowdown=2.0, dtype="float32",
        torch_version="2", points=points, fits=(),
    )  # fmt: skip
    rows = list(csv.DictReader(save_grid(tmp_path / "a.csv", grid).read_text().splitlines()))
    content = msgspec.json.decode(save_grid(tmp_path / "a.json", grid).read_bytes())
    assert content["format"] == "stagewright.grid" and content["version"] == 1
    for row, other in zip(rows, content["points"], strict=True):
        assert row.pop("device_type") == "slow" and float(row.pop("emulated_slowdown")) == 2
        assert {name: float(value) for name, value in row.items()} == other
