"""Schedules as CSV: read and written as torch.distributed.pipelining does, in both its formats."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from torch.distributed.pipelining import (
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleLoopedBFS,
    ScheduleZBVZeroBubble,
)
from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime
from torch.distributed.pipelining.stage import _PipelineStageBase

from stagewright.document import InputError
from stagewright.program import check
from stagewright.schedule import Action, Edge, Pipeline, Schedule, Worker
from stagewright.schedule_csv import CSV_FORMATS, csv_of, load_schedule, schedule_of_csv
from stagewright.scheduling import SCHEDULES, make_schedule

from .random_pipelines import pipelines


class UnconnectedStage(_PipelineStageBase):
    """What torch's schedules ask of a stage when they are made, without processes."""

    def __init__(self, index: int, num_stages: int, num_ranks: int) -> None:
        vars(self).update(
            stage_index=index,
            num_stages=num_stages,
            group_rank=0,
            group_size=num_ranks,
            group=None,
            device=torch.device("cpu"),
            has_backward=True,
            submod=None,
        )

    def _create_grad_recv_info(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def _prepare_forward_infra(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def _prepare_backward_infra(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


def torchs(kind: Any, num_ranks: int, num_microbatches: int) -> Any:
    """Return one of torch's schedules for two stages per rank, as rank 0 makes it."""
    is_v = kind is ScheduleZBVZeroBubble
    own = [0, 2 * num_ranks - 1] if is_v else [0, num_ranks]
    stages = [UnconnectedStage(index, 2 * num_ranks, num_ranks) for index in own]
    return kind(stages, num_microbatches)


def folded(num_ranks: int, num_microbatches: int, *, v: bool = False) -> Pipeline:
    """Return a chain of two stages per rank, dealt in turn or in the shape of a V."""
    ranks = [*range(num_ranks), *(reversed(range(num_ranks)) if v else range(num_ranks))]
    return Pipeline(
        stages=tuple((Worker(rank, 1),) for rank in ranks),
        edges=tuple(Edge(s, s + 1) for s in range(len(ranks) - 1)),
        num_microbatches=num_microbatches,
    )


@pytest.mark.parametrize("form", ["compute_only", "compute_comms"])
@pytest.mark.parametrize(
    "kind",
    [
        ScheduleInterleaved1F1B,
        ScheduleInterleavedZeroBubble,
        ScheduleLoopedBFS,
        ScheduleZBVZeroBubble,
    ],
)
def test_what_torch_writes_can_run_here(kind: Any, form: str, tmp_path: Path) -> None:
    theirs = torchs(kind, 4, 8)
    theirs._prepare_schedule_with_comms(theirs.pipeline_order)
    theirs._dump_csv(tmp_path / "theirs.csv", form)
    schedule = load_schedule(tmp_path / "theirs.csv")
    is_v = kind is ScheduleZBVZeroBubble
    assert len(check(folded(4, 8, v=is_v), schedule)) >= 2 * 8 * 8
    for rank, actions in theirs.pipeline_order.items():
        assert [str(action) for action in schedule.rows[rank]] == [str(a) for a in actions if a]


@pytest.mark.parametrize("name", ["gpipe", "interleaved", "zero-bubble"])
def test_what_is_written_here_torch_reads_and_finds_no_deadlock(name: str, tmp_path: Path) -> None:
    pipeline = folded(4, 8)
    schedule = make_schedule(name, pipeline)
    for form in CSV_FORMATS:
        (tmp_path / "ours.csv").write_text(csv_of(pipeline, schedule, form))
        theirs = torchs(_PipelineScheduleRuntime, 4, 8)
        theirs._load_csv(tmp_path / "ours.csv", form.replace("-", "_"))
        lowered = theirs.pipeline_order_with_comms
        for rank, row in lowered.items():  # Their simulator does not know these of theirs.
            lowered[rank] = [a for a in row if not re.search("SHARD|REDUCE", str(a))]
        order = theirs._simulate()
        found = {
            rank: tuple(Action.parse(str(a)) for a in row if a is not None and a.is_compute_op)
            for rank, row in order.items()
        }
        assert found == schedule.rows


@pytest.mark.parametrize("form", CSV_FORMATS)
@pytest.mark.parametrize("name", SCHEDULES)
@given(pipeline=pipelines(most_slices=2))
def test_a_schedule_is_written_and_read_back(name: str, form: Any, pipeline: Pipeline) -> None:
    schedule = make_schedule(name, pipeline)
    assert schedule_of_csv(csv_of(pipeline, schedule, form)) == schedule


def test_idle_cells_are_passed_over_and_two_actions_in_one_stand_in_turn() -> None:
    found = schedule_of_csv("0F0,,0F1,(0F2;0B0)OVERLAP_F_B\n,1UNSHARD,1F0\n\n")
    rows = {0: "0F0 0F1 0F2 0B0", 1: "1F0", 2: ""}
    assert found == Schedule(
        {rank: tuple(map(Action.parse, row.split())) for rank, row in rows.items()}
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0F0\n1F0,1X0\n", "row 2, cell 2: action is '1X0'"),
        ("(0F0;(0B0))OVERLAP_F_B\n", "row 1, cell 1: action is "),
        ('"0F0', "is no CSV"),
    ],
)
def test_a_wrong_cell_is_named(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_schedule(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)


def test_a_file_with_another_ending_has_rows_as_text(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("0: 0F0 0B0\n")
    assert load_schedule(tmp_path / "rows.txt") == Schedule(
        {0: (Action(0, "F", 0), Action(0, "B", 0))}
    )
