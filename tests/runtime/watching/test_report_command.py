"""stagewright report: what train --report wrote, as text, JSON and a page."""

import json
from pathlib import Path

import msgspec
import pytest

from stagewright.cli import main

from .reports import run_file


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    path.write_bytes(msgspec.json.encode(run_file()))
    return path


def test_a_report_becomes_a_table_and_a_page(
    report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "pages" / "run.html"
    assert main(["report", str(report), "-o", str(page)]) == 0
    out = capsys.readouterr().out
    assert "measured / predicted = 1.111" in out
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_json_gives_back_what_the_file_holds(
    report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(report), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("page") is None
    assert printed == json.loads(report.read_text())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "run.json: "),
        (b"[" * 100_000, "run.json: "),
        (b'{"history": {}}', "missing required field"),
        (b'{"hist": 1}', "contains unknown field `hist`"),
    ],
)
def test_what_is_no_report_is_refused_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    assert main(["report", str(path)]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert message in err


def test_a_missing_report_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "nonesuch.json"]) == 2
    assert "nonesuch.json: cannot be read" in capsys.readouterr().err
