"""Show a plan's schedule: one row of actions per rank, and the predicted timeline as pictures.

example: stagewright schedule plan.json --svg schedule.svg --trace schedule.json
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagewright.plan import Plan
from stagewright.program import check

from .borders import stages_that_share_parameters
from .load import load_inputs_of_plan
from .simulation.picture import write_picture
from .simulation.simulate import Timeline, simulate
from .simulation.trace_file import write_trace


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    Raises:
        InputError: the plan is wrong, or a file that it was made from has changed.
    """
    parser = argparse.ArgumentParser(
        prog="stagewright schedule",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("plan", type=Path, help="plan (JSON)")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the predicted timeline")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write it for Perfetto")
    parser.add_argument("--overlap", choices=("full", "none"), default="full")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    plan = Plan.load(args.plan)
    check(plan.pipeline(), plan.rows, forward_only=plan.is_inference)
    report: dict[str, Any] = {
        "plan": str(args.plan),
        "schedule": plan.schedule,
        "num_microbatches": plan.num_microbatches,
        "rows": {
            str(rank): [str(action) for action in row]
            for rank, row in sorted(plan.rows.rows.items())
        },
        "predicted_step_ms": plan.predicted_step_ms,
        "written": [str(path) for path in (args.svg, args.trace) if path],
    }
    if args.svg or args.trace:
        timeline = _timeline(plan, args)
        if args.svg:
            write_picture(args.svg, plan, timeline)
        if args.trace:
            write_trace(args.trace, plan, timeline)
    print(json.dumps(report) if args.json else _text(report))
    return 0


def _timeline(plan: Plan, args: argparse.Namespace) -> Timeline:
    inputs = load_inputs_of_plan(plan, args.plan)
    sharing = stages_that_share_parameters(inputs.model, [stage.layers for stage in plan.stages])
    return simulate(plan, inputs.cluster, sharing, args.overlap)


def _text(report: dict[str, Any]) -> str:
    rows = "\n".join(f"{rank}: {' '.join(row)}" for rank, row in report["rows"].items())
    lines = [
        f"# {report['schedule']}, {report['num_microbatches']} micro-batches, one step "
        f"{report['predicted_step_ms']:.3f} ms (predicted)",
        rows,
    ]
    lines += [f"# written: {path}" for path in report["written"]]
    return "\n".join(lines)
