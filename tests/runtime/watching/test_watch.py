"""A watched training on real ranks: its metrics, traces, traffic and timeline against what it did."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from stagewright.runtime.training.trainer import History
from stagewright.runtime.watching.report import RunReport
from stagewright.runtime.watching.step_trace import StepRange
from stagewright.runtime.watching.timeline import TimelineEvent

MakePackage = Any
RankPool = Any
STEPS = 5
CLOCK_ERROR_MS = 1.0
"""Half of the quickest round trip of a small message is far less."""


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("watched")


@pytest.fixture(scope="module")
def watched(
    rank_pool: RankPool, make_package: MakePackage, folder: Path
) -> tuple[Any, History, RunReport]:
    """Five steps of two replicas before one, with everything that can be watched."""
    package = make_package("mlp", [2, 1], 4, "1f1b")
    results = rank_pool.run(
        "watched_training",
        3,
        options={"epochs": 1, "max_steps": STEPS},
        watch={
            "metrics": folder / "metrics.jsonl",
            "tensorboard": folder / "board",
            "every": 2,
            "traced": StepRange(2, 3),
            "trace_folder": folder / "traces",
        },
        settings={"clip_norm": 1e-3},
        **package.arguments,
    )
    assert results[1][0] == results[0][0], "ranks know different losses"
    assert results[1][1] is None
    return package.plan, *results[0]


def test_every_step_has_one_line_of_metrics_with_the_losses_of_the_history(
    watched: tuple[Any, History, RunReport], folder: Path
) -> None:
    plan, history, _ = watched
    lines = lines_of(folder / "metrics.jsonl")
    steps, epochs = lines[:STEPS], lines[STEPS:]
    assert [line["event"] for line in lines] == ["step"] * STEPS + ["epoch"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5]
    assert [line["loss"] for line in steps] == history.losses
    assert epochs[0]["train_loss"] == pytest.approx(sum(history.losses) / STEPS)
    for line in steps:
        assert line["num_samples"] == plan.batch_size
        assert line["samples_per_s"] == pytest.approx(plan.batch_size / line["step_ms"] * 1e3)
        assert 0 <= line["bubble_share"] < 1
        assert line["gradient_norm"] > 1e-3, "the norm is the one before clipping"
        assert line["learning_rate"] == 0.01


def test_tensorboard_reads_the_same_figures(
    watched: tuple[Any, History, RunReport], folder: Path
) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator(str(folder / "board"))
    accumulator.Reload()
    for name, tag in (("loss", "train/loss"), ("bubble_share", "train/bubble_share")):
        found = [(item.step, item.value) for item in accumulator.Scalars(tag)]
        lines = lines_of(folder / "metrics.jsonl")[:STEPS]
        assert [step for step, _ in found] == [line["step"] for line in lines]
        assert [value for _, value in found] == pytest.approx([line[name] for line in lines])


def test_every_rank_traces_exactly_the_steps_asked_for(
    watched: tuple[Any, History, RunReport], folder: Path
) -> None:
    plan, _, _ = watched
    names = sorted(path.name for path in (folder / "traces").iterdir())
    assert names == [f"rank{rank}.trace.json" for rank in range(3)]
    for rank in range(3):
        events = json.loads((folder / "traces" / names[rank]).read_text())["traceEvents"]
        found = [event["name"] for event in events if event.get("cat") == "user_annotation"]
        row = [str(action) for action in plan.rows.rows[rank]]
        assert [name for name in found if name in row] == [*row, *row]


def test_the_traffic_of_every_border_is_what_the_plan_predicts(
    watched: tuple[Any, History, RunReport],
) -> None:
    plan, _, report = watched
    assert len(report.borders) == len(plan.borders) == 1
    border = report.borders[0]
    size = plan.borders[0].forward_bytes(plan.microbatch_size) * plan.num_microbatches
    assert border.predicted_forward_bytes == border.measured_forward_bytes == size
    assert border.predicted_backward_bytes == border.measured_backward_bytes
    assert border.predicted_backward_bytes > 0
    assert border.forward_messages == border.backward_messages == plan.num_microbatches


def test_the_timeline_has_every_action_after_what_it_needs_on_one_clock(
    watched: tuple[Any, History, RunReport],
) -> None:
    plan, _, report = watched
    assert report.timeline is not None
    ended: dict[str, TimelineEvent] = {}
    for rank, events in enumerate(report.timeline.ranks):
        row = [str(action) for action in plan.rows.rows[rank]]
        assert [event.what for event in events] == [*row, "reduce", "update"]
        for before, after in itertools.pairwise(events):
            assert 0 <= before.start_ms <= before.end_ms <= after.start_ms + 1e-6
        ended |= {event.what: event for event in events}
    for microbatch in range(plan.num_microbatches):
        forward, backward = ended[f"1F{microbatch}"], ended[f"1B{microbatch}"]
        assert forward.start_ms > ended[f"0F{microbatch}"].end_ms - CLOCK_ERROR_MS
        assert ended[f"0B{microbatch}"].start_ms > backward.end_ms - CLOCK_ERROR_MS


def test_a_resumed_run_goes_on_in_the_same_file_with_every_step_once(
    rank_pool: RankPool, make_package: MakePackage, tmp_path: Path
) -> None:
    package = make_package("mlp", [1, 1], 2, "1f1b")

    def training(max_steps: int, *, resume: bool) -> History:
        options = {
            "epochs": 1,
            "max_steps": max_steps,
            "checkpoint_folder": tmp_path / "saved",
            "resume": resume,
            "evaluate": False,
        }
        watch = {"metrics": tmp_path / "metrics.jsonl", "every": 100}
        arguments = {"options": options, "watch": watch, "settings": {}} | package.arguments
        history: History = rank_pool.run("watched_training", 2, **arguments)[0][0]
        return history

    first = training(3, resume=False)
    second = training(5, resume=True)
    steps = [line for line in lines_of(tmp_path / "metrics.jsonl") if line["event"] == "step"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5]
    assert [line["loss"] for line in steps] == first.losses + second.losses


def test_a_backward_in_two_parts_is_reported_as_their_sum(
    rank_pool: RankPool, make_package: MakePackage
) -> None:
    package = make_package("mlp", [1, 1], 4, "zero-bubble")
    options = {"epochs": 1, "max_steps": 3, "evaluate": False}
    results = rank_pool.run(
        "watched_training", 2, options=options, watch={}, settings={}, **package.arguments
    )
    report = results[0][1]
    assert report.timeline is not None
    events = report.timeline.ranks[
        1
    ]  # The first stage, for which nobody waits, has whole backwards.
    middles_ms = []
    for kind in "IW":
        spent_ms = sorted(e.end_ms - e.start_ms for e in events if e.what.startswith(f"1{kind}"))
        middles_ms.append((spent_ms[1] + spent_ms[2]) / 2)
    assert report.replicas[1].measured_backward_ms == pytest.approx(sum(middles_ms))
    assert report.replicas[0].measured_backward_ms is not None
