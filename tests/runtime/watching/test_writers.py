"""Where metrics go: files that go on, lines for logs, and what is refused."""

import io
import json
import sys
from pathlib import Path

import pytest

from stagewright.document import InputError
from stagewright.runtime.watching.metrics import EpochMetrics, StepMetrics
from stagewright.runtime.watching.writers import JsonLines, ProgressLines, demand_tensorboard


def step(number: int, loss: float = 0.5) -> StepMetrics:
    return StepMetrics(
        step=number,
        epoch=0,
        loss=loss,
        learning_rate=0.1,
        gradient_norm=None,
        num_samples=16,
        samples_per_s=320.0,
        step_ms=50.0,
        bubble_share=0.25,
    )


EPOCH = EpochMetrics(step=2, epoch=0, train_loss=0.5, test_loss=None, test_metric=0.75)


def write(path: Path, first_step: int, *steps: int) -> None:
    lines = JsonLines(path, first_step)
    for number in steps:
        lines.write(step(number))
    lines.close()


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_resumed_run_replaces_the_steps_that_it_repeats(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1, 2, 3, 4)
    path.write_bytes(path.read_bytes() + b'{"event": "st')  # killed while writing
    write(path, 2, 3, 4, 5)
    assert steps_in(path) == [1, 2, 3, 4, 5]


def test_a_new_run_begins_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "metrics.jsonl"
    write(path, 0, 1, 2)
    write(path, 0, 1)
    assert steps_in(path) == [1]


def test_what_was_flushed_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path, 0)
    lines.write(step(1))
    lines.flush()
    assert steps_in(path) == [1]
    lines.close()


def test_a_loss_that_is_not_finite_is_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path, 0)
    lines.write(step(1, float("nan")))
    lines.close()
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["loss"] is None


@pytest.mark.parametrize("line", ["no json", "[]", '{"step": "1"}', "7"])
def test_a_file_that_holds_something_else_is_not_gone_on_with(tmp_path: Path, line: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(f"{line}\n")
    with pytest.raises(InputError, match="line 1 is no metrics of a step; name another file"):
        JsonLines(path, 3)
    assert path.read_text() == f"{line}\n"


def test_lines_tell_the_latest_step_whenever_steps_are_gathered() -> None:
    stream = io.StringIO()
    lines = ProgressLines(4, stream)
    for event in (step(1), step(2, 0.25), EPOCH):
        lines.write(event)
    lines.close()
    assert stream.getvalue().splitlines() == [
        "step 2/4: loss 0.2500, 320 samples/s, bubble 25%",
        "epoch 1: train loss 0.5000, held-out metric 0.7500",
    ]


def test_without_tensorboard_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install 'stagewright\\[tensorboard\\]'"):
        demand_tensorboard()
