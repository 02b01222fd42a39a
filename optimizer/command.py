"""Cut a model into stages for the devices of a cluster, as fast as the cost model allows.

example: stagewright optimize hete_files/one_fast_two_slow.toml -o plan.json --batch-size 128
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from stagewright.document import InputError, demand_writable
from stagewright.scheduling import INTERLEAVED, PLANNED_SCHEDULES

from .borders import chain_of
from .constraints import Constraints, Fixed
from .costs.cost import STATE_COPIES, Objective
from .formats.dispatch import asks_for_other_format, plan_other_format
from .given import GivenStages
from .load import Inputs, load_inputs
from .planning import SOLVERS, TRAINING_OBJECTIVES, Request, optimize
from .report import report_of, text_of
from .server_cluster import LinkFigures, is_server_file, write_cluster
from .simulation.trace_file import write_trace


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    Raises:
        InputError: the input is wrong.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if asks_for_other_format(arguments):
        return plan_other_format(arguments)
    args = _parser().parse_args(arguments)
    for path in (args.output, args.trace):
        if path is not None:
            demand_writable(path)
    given = None
    if args.cuts or args.replicas or args.types:
        given = GivenStages.parse(
            args.cuts, args.replicas, args.types, equal_shares=args.equal_shares
        )
    elif args.equal_shares:
        raise InputError(
            "--equal-shares is for stages given by --cuts and --replicas; leave it out"
        )
    inputs = load_inputs(_cluster_path(args))
    request = Request(
        batch_size=args.batch_size,
        microbatch_size=args.microbatch_size,
        schedule=args.schedule,
        objective=_objective(args),
        solver=args.solver,
        time_limit_s=args.time_limit,
        optimizer=args.optimizer,
        overlap=args.overlap,
        max_stages=args.max_stages,
        count_memory=not args.ignore_memory,
        count_update=not args.ignore_update,
        given=given,
        constraints=_constraints(args, inputs),
        top=args.top,
        rank_by=args.rank_by,
        stages_per_rank=_stages_per_rank(args),
    )
    result = optimize(inputs, request, args.output)
    result.plan.save(args.output)
    if args.trace:
        write_trace(args.trace, result.plan, result.prediction.timeline)
    report = report_of(result, args.output)
    print(json.dumps(report) if args.json else text_of(report))
    return 0


def _cluster_path(args: argparse.Namespace) -> Path:
    """Return the cluster file; that of a server file is written beside the plan.

    Raises:
        InputError: a figure is given that only server files need.
    """
    if not is_server_file(args.cluster):
        for name in ("memory", "bandwidth", "between_bandwidth", "latency_ms"):
            if getattr(args, name) not in (None, []):
                raise InputError(
                    f"--{name.replace('_', '-')} is for server files, but {args.cluster} is a cluster file, "
                    "which says it itself; change it there"
                )
        return Path(args.cluster)
    links = LinkFigures(
        bandwidth_bytes_per_s=args.bandwidth,
        between_bandwidth_bytes_per_s=args.between_bandwidth,
        latency_ms=0.0 if args.latency_ms is None else args.latency_ms,
    )
    return write_cluster(args.cluster, args.memory, links, args.output)


def _stages_per_rank(args: argparse.Namespace) -> int:
    if args.stages_per_rank is None:
        return 2 if args.schedule == INTERLEAVED else 1
    return int(args.stages_per_rank)


def _objective(args: argparse.Namespace) -> Objective:
    """Raise InputError if --inference, whose objective is latency, is given another one."""
    if not args.inference:
        return args.objective or "step-time"
    if args.objective is not None:
        raise InputError(
            f"--inference minimises latency, but --objective is {args.objective}; leave one of them out"
        )
    return "latency"


def _constraints(args: argparse.Namespace, inputs: Inputs) -> Constraints:
    fixed = None
    if args.fix is not None:
        fixed = Fixed.load(args.fix)
        layers = [layer.name for layer in chain_of(inputs.model)]
        fixed.check(args.fix, layers, list(inputs.graphs))
    return Constraints(
        straight=args.straight,
        allow_recompute=args.allow_recompute,
        fixed=fixed,
        budget_per_hour=args.budget,
        deadline_ms=args.deadline_ms,
        period_ms=args.max_period,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stagewright optimize",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--format",
        help="plan another planner's files instead: dnn-partitioning, piper or metis "
        "(stagewright optimize --format NAME --help)",
    )
    parser.add_argument(
        "cluster", type=Path, help="cluster file (TOML) or server file, see hete_files/README.md"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="plan to write (JSON)")
    parser.add_argument("--batch-size", type=int, required=True, help="samples per step")
    parser.add_argument(
        "--microbatch-size",
        type=int,
        help="samples per micro-batch (default: the best measured one)",
    )
    _add_schedule(parser)
    parser.add_argument(
        "--objective", choices=TRAINING_OBJECTIVES, help="of a training plan (default: step-time)"
    )
    parser.add_argument("--solver", choices=list(SOLVERS), default="exact")
    parser.add_argument(
        "--time-limit",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds of search; then, or at Ctrl-C, the best plan so far with its gap (default: 60)",
    )
    parser.add_argument(
        "--optimizer", choices=list(STATE_COPIES), default="sgd-momentum", help="for its memory"
    )
    parser.add_argument(
        "--overlap",
        choices=("full", "none"),
        default="full",
        help="do messages travel while ranks compute (default: full)",
    )
    _add_limits(parser)
    _add_server_figures(parser)
    parser.add_argument("--ignore-memory", action="store_true", help="let stages exceed the memory")
    parser.add_argument("--ignore-update", action="store_true", help="do not count the update")
    given = parser.add_argument_group("stages fixed by the user; the plan is scored, not searched")
    given.add_argument("--cuts", metavar="LAYER,...", help="the first layer of stages 1, 2, ...")
    given.add_argument("--replicas", metavar="N,...", help="replicas of each stage (default: 1)")
    given.add_argument(
        "--types", metavar="TYPE,...", help="device type of each stage, or of its replicas: a+b"
    )
    given.add_argument(
        "--equal-shares", action="store_true", help="replicas take turns, fast or slow"
    )
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="write the timeline for Perfetto"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_server_figures(parser: argparse.ArgumentParser) -> None:
    servers = parser.add_argument_group("what a server file does not hold")
    servers.add_argument("--memory", action="append", default=[], metavar="TYPE=BYTES")
    servers.add_argument("--bandwidth", type=float, metavar="BYTES_PER_S")
    servers.add_argument(
        "--between-bandwidth", type=float, metavar="BYTES_PER_S", help="default: as inside a server"
    )
    servers.add_argument("--latency-ms", type=float, metavar="MS", help="default: 0")


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--schedule", choices=PLANNED_SCHEDULES, default="1f1b")
    parser.add_argument(
        "--stages-per-rank",
        type=int,
        metavar="V",
        help="of --schedule interleaved: stages dealt to all devices V times (default: 2)",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    limits = parser.add_argument_group("limits on the plans that are searched")
    limits.add_argument("--max-stages", type=int, metavar="N")
    limits.add_argument("--straight", action="store_true", help="no replicas: one device per stage")
    limits.add_argument(
        "--allow-recompute",
        action="store_true",
        help="let stages keep only their inputs and run forward again: less memory, more time",
    )
    limits.add_argument(
        "--fix",
        type=Path,
        metavar="FILE",
        help="TOML: layers that stay together or sit on a device type, see docs/formats.md",
    )
    limits.add_argument(
        "--budget", type=float, metavar="MONEY", help="per hour, for all devices that the plan uses"
    )
    limits.add_argument(
        "--deadline-ms", type=float, metavar="MS", help="of a step, for --objective cost"
    )
    limits.add_argument(
        "--inference",
        action="store_true",
        help="forward only: the least latency of a micro-batch, instead of --objective",
    )
    limits.add_argument(
        "--max-period", type=float, metavar="MS", help="between two micro-batches of --inference"
    )
    several = parser.add_argument_group("several plans, for small clusters")
    several.add_argument(
        "--top", type=int, default=1, metavar="K", help="report the K best plans (default: 1)"
    )
    several.add_argument(
        "--rank-by",
        choices=("formula", "simulation"),
        default="formula",
        help="simulation: take the best simulated of the --top plans (default then: 20)",
    )
