"""Plan as Metis does, with its files, flags, search and step count; or find the optimum of its formula.

example: python -m stagewright.optimizer.metis --model_name GPT --model_size 1.5B --num_layers 10 --gbs 128
    --hidden_size 4096 --sequence_length 1024 --vocab_size 51200 --hostfile_path hostfile
    --clusterfile_path hete_files/metis/clusterfile.json --profile_data_path profile
    --max_profiled_tp_degree 128 --max_profiled_batch_size 128 [--use-strat | --exact]
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stagewright.document import InputError, write_atomically

from .exact import solve_exactly
from .picture import check_can_draw, draw_plans
from .problem import Problem, Settings, load_problem
from .report import (
    exact_report,
    exact_text,
    log_text,
    plan_rows,
    search_report,
    search_text,
)
from .search import search


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    Raises:
        InputError: the input is wrong.
    """
    args = parser().parse_args(argv)
    _check(args)
    settings = Settings(
        num_layers=args.num_layers,
        global_batch_size=args.gbs,
        hidden_size=args.hidden_size,
        sequence_length=args.sequence_length,
        vocab_size=args.vocab_size,
        max_tensor_parallel=args.max_profiled_tp_degree,
        max_batch_size=args.max_profiled_batch_size,
        min_group_scale=args.min_group_scale_variance,
        max_permute_length=args.max_permute_len,
    )
    started = time.perf_counter()
    problem = load_problem(
        settings, args.hostfile_path, args.clusterfile_path, args.profile_data_path
    )
    if args.exact:
        result = solve_exactly(problem, args.time_limit, args.fit_devices)
        seconds = time.perf_counter() - started
        report = exact_report(problem, result, seconds, args.fit_devices)
        print(json.dumps(report) if args.json else exact_text(report))
        return 0
    report = _search(problem, args)
    print(json.dumps(report) if args.json else search_text(report))
    return 0


def _search(problem: Problem, args: argparse.Namespace) -> dict[str, Any]:
    """Search, and write the log and the plot that were asked for."""
    trials_ms = []
    for _ in range(args.trials):
        fresh = replace(problem)  # remembers nothing of the trial before
        started = time.perf_counter()
        result = search(fresh, args.use_strat)
        trials_ms.append((time.perf_counter() - started) * 1000)
    report = search_report(problem, result, args.use_strat, trials_ms)
    files = []
    if args.log_path or args.plot:
        rows = plan_rows(problem, result.plans)
        if args.log_path:
            path = _log_file(args)
            write_atomically(path, log_text(rows).encode())
            files.append(str(path))
        if args.plot:
            draw_plans(args.plot, rows)
            files.append(str(args.plot))
    return report | {"files": files}


def _log_file(args: argparse.Namespace) -> Path:
    """The log: the file named, or MODEL_SIZE.csv in the folder named, as Metis's scripts name folders."""
    path: Path = args.log_path
    name = "_".join(part for part in (args.model_name, args.model_size) if part)
    return path / f"{name}.csv" if path.is_dir() else path


def _check(args: argparse.Namespace) -> None:
    if args.trials < 1:
        raise InputError(f"--trials is {args.trials}, expected 1 or more")
    if not args.time_limit > 0:
        raise InputError(
            f"--time-limit is {args.time_limit}, expected a positive number of seconds"
        )
    if "/" in args.model_name or "/" in args.model_size:
        raise InputError(
            "--model_name and --model_size name the log file; leave out the '/' in them"
        )
    if args.exact and (args.log_path or args.plot):
        raise InputError("--exact finds one plan; leave out --log_path and --plot, or --exact")
    if args.fit_devices and not args.exact:
        raise InputError(
            "--fit-devices needs --exact: Metis's search knows its own memory rule only"
        )
    if args.plot:
        check_can_draw(args.plot)


def parser() -> argparse.ArgumentParser:
    """Return the parser: Metis's and its fork's flags, then ours."""
    made = argparse.ArgumentParser(
        prog="python -m stagewright.optimizer.metis",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = made.add_argument_group("model")
    model.add_argument("--model_name", required=True)
    model.add_argument("--model_size", default="", help="for the log's name")
    model.add_argument("--num_layers", type=int, required=True)
    model.add_argument("--gbs", type=int, required=True, help="global batch size")
    for name in ("--hidden_size", "--sequence_length", "--vocab_size"):
        model.add_argument(name, type=int, required=True)
    model.add_argument("--attention_head_size", type=int, help="accepted, as in Metis not used")
    files = made.add_argument_group("files")
    for name in ("--hostfile_path", "--clusterfile_path", "--profile_data_path"):
        files.add_argument(name, type=Path, required=True)
    files.add_argument("--log_path", type=Path, help="write the table of all plans (CSV)")
    files.add_argument("--home_dir", type=Path, help="accepted, as in Metis not used")
    files.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the table (.png, .svg, .pdf)"
    )
    space = made.add_argument_group("search")
    space.add_argument("--max_profiled_tp_degree", type=int, required=True)
    space.add_argument("--max_profiled_batch_size", type=int, required=True)
    space.add_argument("--min_group_scale_variance", type=float, default=1.0)
    space.add_argument("--max_permute_len", type=int, default=128)
    space.add_argument("--trials", type=int, default=10, help="repeat, for the average time")
    space.add_argument(
        "--use_strat", "--use-strat", action=argparse.BooleanOptionalAction, default=False,
        help="change the strategy of the stage that lacked most memory first, as the fork does",
    )  # fmt: skip
    exact = made.add_argument_group("optimum")
    exact.add_argument(
        "--exact", action="store_true", help="the proven optimum instead of a search"
    )
    exact.add_argument("--time-limit", type=float, default=math.inf, metavar="SECONDS")
    exact.add_argument(
        "--fit-devices", action="store_true", help="only stages that fit the memory of each device"
    )
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made
