"""What the command lines for text graphs have in common."""

import argparse
import json
from pathlib import Path

from .output import Planned, write_all
from .report import Outcome, report_of, text_of


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of both planners for training."""
    parser.add_argument(
        "-s",
        "--memory_size",
        type=float,
        default=16e9,
        help="bytes per device; used with --use_memory_constraint (default: 16e9)",
    )
    parser.add_argument("--straight_pipeline", action="store_true", help="no replicas")
    parser.add_argument(
        "--use_memory_constraint", action="store_true", help="keep stages within --memory_size"
    )
    parser.add_argument(
        "--use_fewer_machines",
        action="store_true",
        help="let devices be idle (solver exact always does)",
    )
    parser.add_argument(
        "--activation_compression_ratio",
        type=float,
        metavar="R",
        help="count transfers, divided by R; 1: uncompressed (default: transfers are not counted)",
    )
    add_output_options(parser)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where results go."""
    parser.add_argument(
        "-o",
        "--output_directory",
        type=Path,
        help="write gpus=N.txt, gpus=N.dot, plan.json, dp_conf.json, mp_conf.json, hybrid_conf.json there",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def report_and_write(
    outcome: Outcome, planned: Planned, folder: Path | None, as_json: bool
) -> None:
    """Write what was asked for, then print the report.

    Raises:
        InputError: a file cannot be written.
    """
    written, notes = write_all(planned, folder) if folder is not None else ([], [])
    report = report_of(outcome, written, notes)
    print(json.dumps(report) if as_json else text_of(report))
