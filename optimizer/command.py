"""Cut a model into stages for the devices of a cluster, as fast as the cost model allows.

example: stagewright optimize hete_files/one_fast_two_slow.toml -o plan.json --batch-size 64
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from stagewright.scheduling import SCHEDULES

from .costs.cost import STATE_COPIES
from .given import GivenStages
from .load import load_inputs
from .planning import OBJECTIVES, SOLVERS, Request, optimize
from .report import report_of, text_of
from .simulation.trace_file import write_trace


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    Raises:
        InputError: the input is wrong.
    """
    args = _parser().parse_args(argv)
    given = None
    if args.cuts or args.replicas or args.types:
        given = GivenStages.parse(args.cuts, args.replicas, args.types)
    request = Request(
        batch_size=args.batch_size,
        microbatch_size=args.microbatch_size,
        schedule=args.schedule,
        objective=args.objective,
        solver=args.solver,
        optimizer=args.optimizer,
        overlap=args.overlap,
        max_stages=args.max_stages,
        count_memory=not args.ignore_memory,
        count_update=not args.ignore_update,
        given=given,
    )
    result = optimize(load_inputs(args.cluster), request, args.output)
    result.plan.save(args.output)
    if args.trace:
        write_trace(args.trace, result.plan, result.prediction.timeline)
    report = report_of(result, args.output)
    print(json.dumps(report) if args.json else text_of(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stagewright optimize",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cluster", type=Path, help="cluster file (TOML), see hete_files/README.md")
    parser.add_argument("-o", "--output", type=Path, required=True, help="plan to write (JSON)")
    parser.add_argument("--batch-size", type=int, required=True, help="samples per step")
    parser.add_argument(
        "--microbatch-size",
        type=int,
        help="samples per micro-batch (default: the best measured one)",
    )
    parser.add_argument("--schedule", choices=SCHEDULES, default="1f1b")
    parser.add_argument("--objective", choices=list(OBJECTIVES), default="step-time")
    parser.add_argument("--solver", choices=list(SOLVERS), default="exact")
    parser.add_argument(
        "--optimizer", choices=list(STATE_COPIES), default="sgd-momentum", help="for its memory"
    )
    parser.add_argument(
        "--overlap",
        choices=("full", "none"),
        default="full",
        help="do messages travel while ranks compute (default: full)",
    )
    parser.add_argument("--max-stages", type=int, metavar="N")
    parser.add_argument("--ignore-memory", action="store_true", help="let stages exceed the memory")
    parser.add_argument("--ignore-update", action="store_true", help="do not count the update")
    given = parser.add_argument_group("stages fixed by the user; the plan is scored, not searched")
    given.add_argument("--cuts", metavar="LAYER,...", help="the first layer of stages 1, 2, ...")
    given.add_argument("--replicas", metavar="N,...", help="replicas of each stage (default: 1)")
    given.add_argument(
        "--types", metavar="TYPE,...", help="device type of each stage, or of its replicas: a+b"
    )
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="write the timeline for Perfetto"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser
