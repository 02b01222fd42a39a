"""The command line of stagewright train: its options, their ranges, and the optimizer's arguments."""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stagewright.document import InputError
from stagewright.plan import Plan
from stagewright.program import check
from stagewright.schedule import Schedule
from stagewright.schedule_csv import load_schedule
from stagewright.scheduling import TRAINING_SCHEDULES

from .training.precision import PRECISIONS
from .training.updating import RATE_SCHEDULES
from .watching.step_trace import StepRange
from .watching.watch import WATCHED_EVERY, WatchOptions
from .watching.writers import demand_tensorboard

LONGEST_TIMEOUT_S = 86400.0
RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    *(
        (n, lambda v: v >= 1, "at least 1")
        for n in ("epochs", "max_steps", "checkpoint_every", "keep", "update_window", "steps")
    ),
    *(
        (n, lambda v: 0 <= v < math.inf, "a finite number from 0")
        for n in ("lr", "momentum", "weight_decay")
    ),
    ("watch_every", lambda v: v >= 1, "at least 1"),
    ("warm_up", lambda v: v >= 0, "at least 0"),
    ("prefetch", lambda v: v >= 0, "at least 0"),
    ("clip_norm", lambda v: 0 < v < math.inf, "a finite number above 0"),
    (
        "timeout",
        lambda v: 0 < v <= LONGEST_TIMEOUT_S,
        f"seconds, above 0 and up to {LONGEST_TIMEOUT_S:.0f}",
    ),
    ("seed", lambda v: 0 <= v < 2**63, "an integer from 0 to 2**63 - 1"),
)
"""Of the numbers of the command line: which values are good, in code and in words."""


def make_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="stagewright train",
        description="Train a plan's stages: one process per rank, started by torchrun on every server.",
        epilog="example: torchrun --nproc-per-node 3 -m stagewright.runtime stages --task task.py "
        "--epochs 4 --output weights.safetensors",
    )
    add = parser.add_argument
    add(
        "directory",
        type=Path,
        help="stage modules that stagewright generate wrote (code: trust it)",
    )
    add("--task", required=True, help="package.module or path/to/file.py with loss and dataset")
    add("--epochs", type=int, default=1)
    add("--max-steps", type=int, help="stop after so many steps in all")
    _add_schedule(parser)
    _add_update(parser)
    add("--seed", type=int, default=0)
    add("--dtype", choices=["float32", "float64"], help="default: the plan's")
    add(
        "--precision",
        choices=PRECISIONS,
        help="bf16, fp16: mixed, parameters stay float32; default: as the plan was profiled",
    )
    add(
        "--weights",
        type=Path,
        help="safetensors to start from; default: the task's model under the seed",
    )
    add("--output", type=Path, help="write the trained weights here (safetensors, original names)")
    _add_checkpoints(parser)
    _add_data(parser)
    _add_places(parser)
    add(
        "--timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="longest wait for another rank in a step or a checkpoint",
    )
    add(
        "--report", type=Path, help="write measured against predicted here: JSON, or a page (.html)"
    )
    _add_watching(parser)
    add(
        "--no-overlap",
        action="store_true",
        help="sum the replicas' gradients after the last backward, not beside it",
    )
    add("--json", action="store_true", help="print one JSON object (docs/formats.md), on rank 0")
    return parser


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose another schedule than the plan's."""
    add = parser.add_argument
    add(
        "--schedule",
        choices=TRAINING_SCHEDULES,
        help="default: the plan's; the plan predicts its own only",
    )
    add(
        "--schedule-file",
        type=Path,
        metavar="FILE",
        help="run these rows instead: CSV as torchtitan's (.csv), or as stagewright schedule prints them",
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    """Add how the datasets are used."""
    add = parser.add_argument
    add("--no-evaluation", action="store_true", help="do not evaluate on the held-out split")
    add(
        "--prefetch",
        type=int,
        default=0,
        metavar="N",
        help="processes per rank that read samples ahead of training (default: 0, the rank reads them "
        "itself); each holds the dataset, and gains where an item takes time",
    )


def _add_checkpoints(parser: argparse.ArgumentParser) -> None:
    """Add where and when checkpoints are saved."""
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        metavar="FOLDER",
        help="save checkpoints here; all ranks must see it",
    )
    add("--checkpoint-every", type=int, metavar="STEPS", help="default: at the end of every epoch")
    add(
        "--checkpoint-async",
        action="store_true",
        help="go on training while a checkpoint is written; costs a copy of the rank's state",
    )
    add("--keep", type=int, metavar="N", help="checkpoints to keep (default 2)")
    add(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint in --checkpoint, if any",
    )


def _add_places(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which of the plan's places this server's processes take."""
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add(
        "--server",
        metavar="NAME",
        help="this server's name in the plan: its processes take the plan's ranks there, in order "
        "(default: the ranks that torchrun gives)",
    )
    add(
        "--gpu",
        action="append",
        metavar="NAME",
        help="once for each process of this server: its GPU's name, as torch.cuda.get_device_name says it",
    )


def _add_update(parser: argparse.ArgumentParser) -> None:
    """Add the options of the optimizer and its learning rate."""
    add = parser.add_argument
    add(
        "--optimizer",
        default="sgd",
        metavar="NAME",
        help="sgd, adam, adamw or a class of torch.optim",
    )
    add(
        "--optimizer-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one more argument of the optimizer; VALUE is JSON: betas=[0.9,0.95]",
    )
    add(
        "--update-window",
        type=int,
        metavar="MICROBATCHES",
        help="micro-batches per update, which is a step; default: the plan's number",
    )
    add(
        "--lr-schedule",
        choices=RATE_SCHEDULES,
        default="constant",
        help="down to 0 at the last epoch",
    )
    add("--warm-up", type=int, default=0, metavar="STEPS", help="steps in which the rate rises")
    add("--clip-norm", type=float, help="largest norm of all gradients together")
    add("--lr", type=float, default=0.01, help="learning rate")
    add("--momentum", type=float, help="sgd only (default 0.9)")
    add("--weight-decay", type=float, default=0.0)


def _add_watching(parser: argparse.ArgumentParser) -> None:
    """Add what shows a run while it runs."""
    add = parser.add_argument
    add(
        "--progress",
        choices=["auto", "bar", "lines", "none"],
        default="auto",
        help="bar: on a terminal (auto); lines: for logs; rank 0's error output",
    )
    add("--metrics", type=Path, metavar="FILE", help="write every step's metrics (JSON lines)")
    add("--tensorboard", type=Path, metavar="FOLDER", help="write them for TensorBoard")
    add(
        "--watch-every",
        type=int,
        metavar="STEPS",
        help="gather the metrics of all ranks every so many steps (10); they are of each step",
    )
    add(
        "--profile-steps",
        nargs=2,
        metavar=("FIRST:LAST", "FOLDER"),
        help="trace these steps, counted from 1, with torch.profiler: FOLDER/rank0.trace.json, ...",
    )


def watch_options(args: argparse.Namespace) -> WatchOptions:
    """Return what to show of a run.

    Raises:
        InputError: the steps to trace are none, TensorBoard is not installed, or nothing shows what is
            gathered.
    """
    shown = args.progress != "none" or args.metrics is not None or args.tensorboard is not None
    if args.watch_every is not None and not shown:
        raise InputError(
            "--watch-every needs something that shows the steps: --progress, --metrics or --tensorboard; "
            "name one, or leave it out"
        )
    if args.tensorboard is not None:
        demand_tensorboard()
    traced, folder = args.profile_steps or (None, None)
    return WatchOptions(
        metrics=args.metrics,
        tensorboard=args.tensorboard,
        lines=args.progress == "lines",
        every=args.watch_every or WATCHED_EVERY,
        traced=traced and StepRange.parse(traced),
        trace_folder=folder and Path(folder),
    )


def check_numbers(args: argparse.Namespace) -> None:
    """Raise InputError if a number of a command line (of train, verify, replay) is out of its range."""
    for name, is_good, expected in RANGES:
        value = getattr(args, name, None)
        if value is not None and not is_good(value):
            option = name.replace("_", "-")
            raise InputError(f"--{option} is {value}, expected {expected}")


def rows_of_file(args: argparse.Namespace, plan: Plan) -> Schedule | None:
    """Return the user's own schedule, checked before any process waits for another; None without one.

    Raises:
        InputError: it cannot be read, does not fit the plan, or deadlocks.
    """
    if args.schedule_file is None:
        return None
    if args.schedule is not None:
        raise InputError("--schedule and --schedule-file name two schedules; leave one out")
    rows = load_schedule(args.schedule_file)
    try:
        check(plan.pipeline(args.update_window), rows)
    except InputError as error:
        raise InputError(f"{args.schedule_file}: {error}") from None
    return rows


def optimizer_options(words: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """Return the optimizer's further arguments.

    Raises:
        InputError: one is not NAME=VALUE with a JSON value.
    """
    options = []
    for word in words:
        name, equals, text = word.partition("=")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value, equals = None, ""
        if not (name.isidentifier() and equals):
            raise InputError(
                f"--optimizer-option is {word!r}, expected NAME=VALUE with a JSON value: betas=[0.9,0.95]"
            )
        options.append((name, tuple(value) if isinstance(value, list) else value))
    return tuple(options)
