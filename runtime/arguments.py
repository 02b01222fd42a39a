"""The command line of stagewright train: its options, their ranges, and the optimizer's arguments."""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stagewright.document import InputError
from stagewright.scheduling import SCHEDULES

from .updating import RATE_SCHEDULES

LONGEST_TIMEOUT_S = 86400.0
RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    *(
        (n, lambda v: v >= 1, "at least 1")
        for n in ("epochs", "max_steps", "checkpoint_every", "keep")
    ),
    *(
        (n, lambda v: 0 <= v < math.inf, "a finite number from 0")
        for n in ("lr", "momentum", "weight_decay")
    ),
    ("warm_up", lambda v: v >= 0, "at least 0"),
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
    add("--schedule", choices=SCHEDULES, help="default: the plan's; the plan predicts its own only")
    _add_update(parser)
    add("--seed", type=int, default=0)
    add("--dtype", choices=["float32", "float64"], help="default: the plan's")
    add(
        "--weights",
        type=Path,
        help="safetensors to start from; default: the task's model under the seed",
    )
    add("--output", type=Path, help="write the trained weights here (safetensors, original names)")
    add(
        "--checkpoint",
        type=Path,
        metavar="FOLDER",
        help="save checkpoints here; all ranks must see it",
    )
    add("--checkpoint-every", type=int, metavar="STEPS", help="default: at the end of every epoch")
    add("--keep", type=int, default=2, metavar="N", help="checkpoints to keep")
    add(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint in --checkpoint, if any",
    )
    add("--no-evaluation", action="store_true", help="do not evaluate on the held-out split")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add(
        "--timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="longest wait for another rank in a step or a checkpoint",
    )
    add("--report", type=Path, help="write measured against predicted here (JSON)")
    add("--json", action="store_true", help="print one JSON object (docs/formats.md), on rank 0")
    return parser


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
        "--lr-schedule",
        choices=RATE_SCHEDULES,
        default="constant",
        help="down to 0 at the last epoch",
    )
    add("--warm-up", type=int, default=0, metavar="STEPS", help="steps in which the rate rises")
    add("--clip-norm", type=float, help="largest norm of all gradients together")
    add("--lr", type=float, default=0.01, help="learning rate")
    add("--momentum", type=float, default=0.9, help="sgd only")
    add("--weight-decay", type=float, default=0.0)


def check_numbers(args: argparse.Namespace) -> None:
    """Raise InputError if a number of the command line is out of its range."""
    for name, is_good, expected in RANGES:
        value = getattr(args, name)
        if value is not None and not is_good(value):
            option = name.replace("_", "-")
            raise InputError(f"--{option} is {value}, expected {expected}")


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
