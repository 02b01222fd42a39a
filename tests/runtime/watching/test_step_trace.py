"""Which steps are traced."""

from pathlib import Path

import pytest
import torch

from stagewright.document import InputError
from stagewright.runtime.ranks.world import World
from stagewright.runtime.watching.step_trace import StepRange, StepTrace

WORLD = World(0, 1, torch.device("cpu"))


def test_a_range_has_both_ends() -> None:
    assert StepRange.parse("3:5") == StepRange(3, 5)


@pytest.mark.parametrize("text", ["", "3", "5:3", "0:2", "a:b", "1:2:3", "-1:2", "1.0:2"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected FIRST:LAST, two steps counted from 1: 3:5"):
        StepRange.parse(text)


def test_a_run_without_those_steps_says_that_there_is_no_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    StepTrace(StepRange(7, 9), tmp_path, WORLD).close()
    assert "no trace was written: step 7 of --profile-steps was not run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        StepTrace(StepRange(1, 1), tmp_path / "file", WORLD)
