"""Show a plan's schedule: one row of actions per rank, and the predicted timeline as pictures.

example: stagewright schedule plan.json --svg schedule.svg --trace schedule.json --csv schedule.csv
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagewright.document import InputError, write_atomically
from stagewright.plan import Plan
from stagewright.program import check
from stagewright.schedule import Schedule
from stagewright.schedule_csv import CSV_FORMATS, csv_of, load_schedule
from stagewright.scheduling import TRAINING_SCHEDULES

from .borders import stages_that_share_parameters
from .flushless import refuse_shared_parameters
from .load import load_inputs_of_plan
from .simulation.picture import write_picture
from .simulation.simulate import Timeline, simulate
from .simulation.trace_file import write_trace
from .simulation.windows import played, updates_after


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    Raises:
        InputError: the plan or the other schedule is wrong, or a file that the plan names has changed.
    """
    args = _parser().parse_args(argv)
    plan = Plan.load(args.plan)
    if args.schedule is not None:
        plan = plan.replace(schedule=args.schedule)
    pipeline, rows = played(plan)
    if args.from_csv is not None:
        pipeline, rows = plan.pipeline(), load_schedule(args.from_csv)
    try:
        check(pipeline, rows, forward_only=plan.is_inference)
    except InputError as error:
        if args.from_csv is None:
            raise
        raise InputError(f"{args.from_csv}: for {args.plan}, {error}") from None
    name = plan.schedule if args.from_csv is None else str(args.from_csv)
    step_ms = plan.predicted_step_ms
    if args.svg or args.trace or args.from_csv or args.schedule:
        timeline = _timeline(plan, args, None if args.from_csv is None else rows)
        step_ms = timeline.step_ms
        if args.svg:
            write_picture(args.svg, plan, timeline, name)
        if args.trace:
            write_trace(args.trace, plan, timeline)
    if args.csv:
        write_atomically(args.csv, csv_of(pipeline, rows, args.csv_format).encode())
    report: dict[str, Any] = {
        "plan": str(args.plan),
        "schedule": name,
        "num_microbatches": plan.num_microbatches,
        "updates_after": updates_after(pipeline, rows),
        "rows": {
            str(rank): [str(action) for action in row] for rank, row in sorted(rows.rows.items())
        },
        "units_in_flight": _units_in_flight(plan, rows),
        "predicted_step_ms": step_ms,
        "written": [str(path) for path in (args.svg, args.trace, args.csv) if path],
    }
    print(json.dumps(report) if args.json else _text(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stagewright schedule",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("plan", type=Path, help="plan (JSON)")
    other = parser.add_mutually_exclusive_group()
    other.add_argument(
        "--schedule",
        choices=TRAINING_SCHEDULES,
        help="show and simulate another schedule than the plan's",
    )
    other.add_argument(
        "--from-csv",
        type=Path,
        metavar="FILE",
        help="check, draw and simulate this schedule for the plan's stages instead of the plan's own",
    )
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the predicted timeline")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write it for Perfetto")
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="write the rows as torchtitan and torch.distributed.pipelining read them",
    )
    parser.add_argument(
        "--csv-format",
        choices=CSV_FORMATS,
        default="compute-only",
        help="with or without sends and receives (default: without)",
    )
    parser.add_argument("--overlap", choices=("full", "none"), default="full")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _timeline(plan: Plan, args: argparse.Namespace, rows: Schedule | None) -> Timeline:
    inputs = load_inputs_of_plan(plan, args.plan)
    refuse_shared_parameters(plan, inputs.model)
    sharing = stages_that_share_parameters(inputs.model, [stage.layers for stage in plan.stages])
    return simulate(plan, inputs.cluster, sharing, args.overlap, rows)


def _units_in_flight(plan: Plan, rows: Schedule) -> dict[str, dict[str, int]]:
    """Return by rank and stage the most units between forward and end of backward."""
    if plan.is_inference:
        return {}
    return {
        str(rank): {str(stage): rows.units_in_flight(rank, stage) for stage in own}
        for rank, own in plan.stages_of_ranks.items()
    }


def _text(report: dict[str, Any]) -> str:
    rows = "\n".join(f"{rank}: {' '.join(row)}" for rank, row in report["rows"].items())
    lines = [
        f"# {report['schedule']}, {report['num_microbatches']} micro-batches, one step "
        f"{report['predicted_step_ms']:.3f} ms (predicted)",
        rows,
    ]
    lines += [
        f"# rank {rank} updates after so many actions of its row: {' '.join(map(str, places))}"
        for rank, places in report["updates_after"].items()
    ]
    lines += [f"# written: {path}" for path in report["written"]]
    return "\n".join(lines)
