"""The picture of all plans."""

import importlib.util
import sys
from pathlib import Path

import pytest

from stagewright.document import InputError
from stagewright.optimizer.metis.picture import check_can_draw, draw_plans
from stagewright.optimizer.metis.report import plan_rows
from stagewright.optimizer.metis.search import search

from .problems import row_problem


@pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="matplotlib is missing")
def test_the_picture_says_what_is_predicted_and_executable(tmp_path: Path) -> None:
    problem, path = row_problem(1), tmp_path / "plans.svg"
    check_can_draw(path)
    draw_plans(path, plan_rows(problem, search(problem).plans))
    text = path.read_text()
    assert "<svg" in text
    assert "(predicted)" in text and "executable (60)" in text


def test_a_plot_without_matplotlib_or_of_an_unknown_kind_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'stagewright\[report\]'"):
        check_can_draw(Path("plans.png"))
    with pytest.raises(InputError, match=r"suffix is '\.gif', expected \.png"):
        check_can_draw(Path("plans.gif"))
