"""Plan a file of another planner under that planner's cost model, with a proven optimum.

example: stagewright optimize bert24_training.json --format dnn-partitioning --solver cp-sat
example: stagewright optimize bert32a100.json --format piper --devices 64 --memory-gib 8
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagewright.document import InputError

from .piper_search import Limits
from .planning import PLANNERS, Report, plan_dnn_partitioning, plan_piper
from .text import text_of

NO_PLAN = 1
"""Exit status where the answer is that there is no plan."""

_ONLY = {
    "dnn-partitioning": ("solver", "any_assignment", "time_limit", "accelerators", "cpus", "output"),
    "piper": (
        "devices", "memory_gib", "bandwidth_gib", "samples_per_batch", "max_replicas",
        "max_tensor_parallel", "no_recomputation",
    ),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status: 0, or 1 if there is no plan.

    Raises:
        InputError: the input is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="stagewright optimize FILE --format",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="the other planner's input (JSON)")
    parser.add_argument("--format", choices=list(PLANNERS), required=True)
    add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    report = plan_by_arguments(args)
    print(json.dumps(report) if args.json else text_of(report))
    return 0 if report["feasible"] else NO_PLAN


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of both formats; all default to None or False."""
    dnn = parser.add_argument_group("--format dnn-partitioning")
    dnn.add_argument("--solver", choices=("ideals", "cp-sat"), help="default: ideals")
    dnn.add_argument(
        "--any-assignment", action="store_true", help="devices need not be contiguous (cp-sat)"
    )
    dnn.add_argument("--time-limit", type=float, metavar="SECONDS", help="for cp-sat")
    dnn.add_argument("--accelerators", type=int, metavar="N", help="default: the file's")
    dnn.add_argument("--cpus", type=int, metavar="N", help="default: the file's")
    dnn.add_argument(
        "-o", "--output", type=Path, help="write the assignment as dnn-partitioning does"
    )
    piper = parser.add_argument_group("--format piper")
    piper.add_argument("--devices", type=int, metavar="N", help="default: the file's")
    piper.add_argument("--memory-gib", type=float, metavar="GIB", help="of a device; the file's")
    piper.add_argument("--bandwidth-gib", type=float, metavar="GIB", help="per second; the file's")
    piper.add_argument("--samples-per-batch", type=int, metavar="N", help="default: the file's")
    piper.add_argument("--max-replicas", type=int, metavar="N", help="of a stage")
    piper.add_argument("--max-tensor-parallel", type=int, metavar="N")
    piper.add_argument("--no-recomputation", action="store_true", help="plain options only")


def plan_by_arguments(args: argparse.Namespace) -> Report:
    """Return the report for parsed arguments: file, format and those of add_arguments.

    Raises:
        InputError: the input is wrong, or an option belongs to the other format.
    """
    for form, names in _ONLY.items():
        for name in names:
            if form != args.format and getattr(args, name) not in (None, False):
                option = name.replace("_", "-")
                raise InputError(
                    f"--{option} is for --format {form}, not {args.format}; leave it out"
                )
    if args.format == "dnn-partitioning":
        return plan_dnn_partitioning(
            args.file,
            solver=args.solver or ("cp-sat" if args.any_assignment else "ideals"),
            contiguous=not args.any_assignment,
            time_limit_s=_positive("--time-limit", args.time_limit),
            num_accelerators=args.accelerators,
            num_cpus=args.cpus,
            output=args.output,
        )
    return plan_piper(
        args.file,
        num_devices=args.devices,
        memory_bytes=_bytes("--memory-gib", args.memory_gib),
        bandwidth_bytes_per_s=_bytes("--bandwidth-gib", args.bandwidth_gib),
        samples_per_batch=args.samples_per_batch,
        limits=Limits(
            most_replicas=_positive("--max-replicas", args.max_replicas),
            most_tensor_parallel=_positive("--max-tensor-parallel", args.max_tensor_parallel),
            recomputation=not args.no_recomputation,
        ),
    )


def _bytes(option: str, gib: float | None) -> float | None:
    return None if gib is None else _positive(option, gib) * 2**30


def _positive(option: str, number: Any) -> Any:
    if number is not None and not 0 < number < float("inf"):
        raise InputError(f"{option} is {number}, expected a finite number above 0")
    return number
