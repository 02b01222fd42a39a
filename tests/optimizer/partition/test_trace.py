"""The best value over time: only improvements are kept, and both files are written."""

import sys
from pathlib import Path

import pytest

from stagewright.document import InputError
from stagewright.optimizer.partition.trace import Trace, write_csv, write_png


def recorded() -> Trace:
    trace = Trace()
    assert [trace.record(value) for value in (9.0, 12.0, 4.0, 4.0)] == [True, False, True, False]
    return trace


def test_only_improvements_are_written_as_csv(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", recorded())
    header, *rows = (tmp_path / "t.csv").read_text().splitlines()
    assert header == "seconds_measured,best_value"
    assert [row.split(",")[1] for row in rows] == ["9.0", "4.0"]


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    write_png(tmp_path / "t.png", recorded(), "demo", 1.5)
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install 'stagewright\[report\]'"):
        write_png(tmp_path / "t.png", recorded(), "demo", 1.5)


def test_the_time_is_over_at_its_limit() -> None:
    assert Trace(0.0).is_over and not Trace().is_over
