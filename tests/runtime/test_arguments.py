"""The train command's own schedule files, read and checked before any process waits for another."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from stagewright.document import InputError
from stagewright.runtime.arguments import rows_of_file
from stagewright.schedule_csv import csv_of

MakePackage = Any


def test_a_schedule_file_is_taken_if_it_can_run(make_package: MakePackage, tmp_path: Path) -> None:
    plan = make_package("mlp", [1, 1], 2, "1f1b").plan
    path = tmp_path / "rows.csv"
    args = argparse.Namespace(schedule_file=path, schedule=None, update_window=None)
    path.write_text(csv_of(plan.pipeline(), plan.rows))
    assert rows_of_file(args, plan) == plan.rows
    path.write_text("0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1\n".replace("1F0,1F1,1B0", "1F1,1F0,1B0"))
    with pytest.raises(InputError, match=r"rows\.csv: the schedule deadlocks: rank 0 waits at 0B0"):
        rows_of_file(args, plan)
    path.write_text("0F0,0B0,0F1,0B1\n")
    with pytest.raises(InputError, match=r"rows\.csv: the schedule has rows for ranks \[0\]"):
        rows_of_file(args, plan)
    args.schedule = "gpipe"
    with pytest.raises(InputError, match="name two schedules; leave one out"):
        rows_of_file(args, plan)
    assert rows_of_file(argparse.Namespace(schedule_file=None, schedule="gpipe"), plan) is None
