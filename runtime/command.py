"""stagewright train: run this rank's part of a plan; start it with torchrun, one process per rank."""

import argparse
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from stagewright.allocation import keep_freed_memory
from stagewright.document import InputError, demand_writable, write_atomically
from stagewright.scheduling import SCHEDULES
from stagewright.task import load_task

from .execution.values import ValueMismatchError
from .faults import (
    INTERRUPTED_STATUS,
    PEER_LOST_STATUS,
    PeerLostError,
    end_on_termination,
    end_rank,
)
from .report import RunReport, format_report, make_report
from .session import Session, Settings
from .storage.package import load_package
from .storage.weights import save_tensors
from .trainer import History, TrainingOptions, describe, train
from .updating import RATE_SCHEDULES
from .world import check_world_size, choose_device, join_world, leave_world, ranks_started

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one rank; return its exit status: 0, 2 for wrong input, 3 where another rank was lost."""
    parser = make_parser()
    args = parser.parse_args(argv)
    _check_numbers(args)
    rank, size, local_rank = ranks_started(os.environ)
    if size == 1:
        return _run(args, rank, size, local_rank)
    try:
        status = _run(args, rank, size, local_rank)
    except InputError as error:
        end_rank(f"stagewright train: rank {rank}: {error}", 2)
    except PeerLostError as error:
        end_rank(f"stagewright train: rank {rank}: {error}", PEER_LOST_STATUS)
    except ValueMismatchError as error:
        end_rank(f"stagewright train: rank {rank}: {error}; profile, plan and generate again", 2)
    except KeyboardInterrupt:
        end_rank(f"stagewright train: rank {rank}: interrupted", INTERRUPTED_STATUS)
    except BaseException:  # noqa: BLE001 - the other ranks must not wait for this one, whatever it met
        traceback.print_exc()
        end_rank(f"stagewright train: rank {rank}: failed, see the traceback above", 1)
    return status


def _check_numbers(args: argparse.Namespace) -> None:
    """Raise InputError if a number of the command line is out of its range."""
    for name, is_good, expected in RANGES:
        value = getattr(args, name)
        if value is not None and not is_good(value):
            option = name.replace("_", "-")
            raise InputError(f"--{option} is {value}, expected {expected}")


def _check_outputs(args: argparse.Namespace) -> None:
    """Raise InputError if a file that is written at the end cannot be written: before training, not after."""
    folder = args.checkpoint
    for path in (args.output, args.report, folder and folder / "checkpoint.json"):
        if path is not None:
            demand_writable(path)


def _run(args: argparse.Namespace, rank: int, size: int, local_rank: int) -> int:
    keep_freed_memory()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    package = load_package(args.directory)
    check_world_size(package.plan, size)
    task = load_task(args.task)
    for name in ("loss", "dataset"):
        task.function(name)
    if size > 1:
        end_on_termination(rank)
    if rank == 0:
        _check_outputs(args)
    world = join_world(rank, size, choose_device(args.device, local_rank), args.timeout)
    settings = Settings(
        optimizer=args.optimizer,
        optimizer_options=_options(args.optimizer_option),
        rate_schedule=args.lr_schedule,
        warm_up_steps=args.warm_up,
        clip_norm=args.clip_norm,
        learning_rate=args.lr,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        seed=args.seed,
        schedule=args.schedule,
        dtype=args.dtype,
        weights=args.weights,
    )
    session = Session(package, task, world, settings)
    options = TrainingOptions(
        epochs=args.epochs,
        max_steps=args.max_steps,
        checkpoint_folder=args.checkpoint,
        checkpoint_every=args.checkpoint_every,
        keep=args.keep,
        resume=args.resume,
        evaluate=not args.no_evaluation,
    )
    history = train(session, options, progress=rank == 0 and sys.stderr.isatty())
    if args.output is not None:
        weights = session.final_weights()
        if weights is not None:
            save_tensors(
                args.output, weights, {"task": package.plan.task, "step": str(_step(history))}
            )
    report = make_report(session)
    if report is not None:
        _print_result(args, history, report)
    leave_world()
    return 0


def _step(history: History) -> int:
    return history.first_step + len(history.losses)


def _print_result(args: argparse.Namespace, history: History, report: RunReport) -> None:
    content = msgspec.json.encode({"history": history, "report": report})  # not finite: null
    if args.report is not None:
        write_atomically(args.report, msgspec.json.format(content, indent=1) + b"\n")
    if args.json:
        print(content.decode())
        return
    if history.first_step:
        print(f"resumed after step {history.first_step}")
    for result in history.epochs:
        print(describe(result))
    print(format_report(report))
    if args.output is not None:
        print(f"wrote {args.output}")


def _options(words: Sequence[str]) -> tuple[tuple[str, Any], ...]:
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
