"""Schedules as CSV, as torchtitan and torch.distributed.pipelining write them: one row per rank, from rank 0.

compute-only: a cell is an action such as 2F0 or, where the rank idles, empty. compute-comms: between them
stand sends and receives, named by the stage whose rank does them: 0SEND_F1, 1RECV_F1, 1SEND_B1, 0RECV_B1.
Messages follow from the actions, so reading passes over all that is no computation, also UNSHARD, RESHARD and
REDUCE_GRAD. Token slices, which the others do not have, print as in 2F0.1.
"""

import csv
import io
import re
from pathlib import Path
from typing import Literal

from stagewright.document import InputError, read_text
from stagewright.flushless import Update
from stagewright.program import Receive, Send, compile_programs
from stagewright.schedule import Action, Pipeline, Schedule

CsvFormat = Literal["compute-only", "compute-comms"]
CSV_FORMATS: tuple[CsvFormat, ...] = ("compute-only", "compute-comms")

_PASSED_OVER = re.compile(
    r"\d{1,9}(SEND_F|RECV_F|SEND_B|RECV_B|UNSHARD|RESHARD|REDUCE_GRAD)\d{0,9}(\.\d{1,9})?", re.ASCII
)
_TOGETHER = re.compile(r"\(([^()]*)\)OVERLAP_F_B")
"""Two actions that torch's DualPipeV runs as one; here they run one after the other."""


def csv_of(pipeline: Pipeline, schedule: Schedule, form: CsvFormat = "compute-only") -> str:
    """Return a schedule as CSV.

    Raises:
        InputError: with compute-comms, the rows contradict one another (`stagewright.program.check`).
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if form == "compute-only":
        writer.writerows(schedule.rows[rank] for rank in sorted(schedule.rows))
        return text.getvalue()
    programs = compile_programs(pipeline, schedule)
    for rank in sorted(programs):
        writer.writerow([_cell(item) for item in programs[rank] if not isinstance(item, Update)])
    return text.getvalue()


def _cell(item: Action | Send | Receive) -> str:
    if isinstance(item, Action):
        return str(item)
    message = item.message
    sends = isinstance(item, Send)
    stage = message.edge.source if sends == message.forward else message.edge.target
    what = f"{'SEND' if sends else 'RECV'}_{'F' if message.forward else 'B'}"
    tail = "" if message.slice is None else f".{message.slice}"
    return f"{stage}{what}{message.microbatch}{tail}"


def schedule_of_csv(text: str) -> Schedule:
    """Return the schedule that a CSV says.

    Raises:
        InputError: a cell is no action of a schedule; the message names its place.
    """
    rows: dict[int, tuple[Action, ...]] = {}
    try:
        lines = list(csv.reader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise InputError(f"is no CSV: {error}") from None
    for rank, cells in enumerate(lines):
        actions: list[Action] = []
        for column, cell in enumerate(cells):
            try:
                actions += _actions(cell.strip())
            except InputError as error:
                raise InputError(f"row {rank + 1}, cell {column + 1}: {error}") from None
        rows[rank] = tuple(actions)
    return Schedule(rows)


def _actions(cell: str) -> list[Action]:
    if not cell or _PASSED_OVER.fullmatch(cell):
        return []
    together = _TOGETHER.fullmatch(cell)
    words = together[1].split(";") if together else [cell]
    return [Action.parse(word.strip()) for word in words]


def load_schedule(path: Path) -> Schedule:
    """Return the schedule of a file: CSV if its name ends in .csv, else rows as Schedule prints them.

    Raises:
        InputError: it cannot be read, or is no schedule.
    """
    text = read_text(path)
    try:
        return schedule_of_csv(text) if path.suffix == ".csv" else Schedule.parse(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
