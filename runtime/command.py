"""stagewright train: run this rank's part of a plan; start it with torchrun, one process per rank."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial

import msgspec
import torch

from stagewright.allocation import keep_freed_memory
from stagewright.document import InputError, demand_writable, write_atomically
from stagewright.schedule import Schedule
from stagewright.task import load_task

from .arguments import check_numbers, make_parser, optimizer_options, rows_of_file, watch_options
from .messages.values import ValueMismatchError
from .ranks.faults import end_on_termination, run_rank
from .ranks.places import rank_on_server
from .ranks.roll_call import naming_the_missing
from .ranks.whereabouts import Whereabouts
from .ranks.world import check_world_size, choose_device, join_world, leave_world, ranks_started
from .session import Session
from .storage.package import load_package
from .storage.weights import save_tensors
from .training.settings import Settings
from .training.trainer import History, TrainingOptions, train
from .watching.page import RunFile, page_of
from .watching.report import RunReport, format_report, make_report
from .watching.writers import epoch_text

PROGRAM = "stagewright train"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one rank; return its exit status: 0, 2 for wrong input, 3 where another rank was lost."""
    parser = make_parser()
    args = parser.parse_args(argv)
    check_numbers(args)
    rank, size, local_rank = ranks_started(os.environ)
    whereabouts = Whereabouts(f"rank {rank}")
    run = partial(_run, args, rank, size, local_rank, whereabouts)
    return run() if size == 1 else run_rank(PROGRAM, whereabouts, run)


def _check_outputs(args: argparse.Namespace) -> None:
    """Raise InputError if a file that is written at the end cannot be written: before training, not after."""
    folder = args.checkpoint
    board = args.tensorboard
    files = (args.output, args.report, args.metrics, board and board / "events")
    for path in (*files, folder and folder / "checkpoint.json"):
        if path is not None:
            demand_writable(path)


def _run(
    args: argparse.Namespace, rank: int, size: int, local_rank: int, whereabouts: Whereabouts
) -> int:
    keep_freed_memory()
    options = _training_options(args)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    package = load_package(args.directory)
    check_world_size(package.plan, size)
    task = load_task(args.task)
    for name in ("loss", "dataset"):
        task.function(name)
    if size > 1:
        end_on_termination(PROGRAM, whereabouts)
    if args.server is not None:
        rank = rank_on_server(package.plan, args.server, local_rank, os.environ)
        whereabouts.place = f"rank {rank} on server {args.server}"
    if rank == 0:
        _check_outputs(args)
    settings = _settings(args, rows_of_file(args, package.plan))
    device = choose_device(args.device, local_rank, args.gpu)
    world = join_world(rank, size, device, args.timeout, whereabouts)
    try:
        with naming_the_missing(world):
            _train(args, options, Session(package, task, world, settings))
    except ValueMismatchError as error:
        raise InputError(f"{error}; profile, plan and generate again") from None
    leave_world()
    return 0


def _train(args: argparse.Namespace, options: TrainingOptions, session: Session) -> None:
    """Train, and write and print what was asked for."""
    is_first = session.world.rank == 0
    shows_bar = args.progress == "bar" or (args.progress == "auto" and sys.stderr.isatty())
    history = train(session, options, progress=is_first and shows_bar)
    if args.output is not None and not history.stopped:
        weights = session.final_weights()
        if weights is not None:
            save_tensors(
                args.output,
                weights,
                {"task": session.plan.task, "step": str(_step(history))},
            )
    report = make_report(session)
    if report is not None:
        _print_result(args, history, report)


def _settings(args: argparse.Namespace, rows: Schedule | None) -> Settings:
    return Settings(
        optimizer=args.optimizer,
        optimizer_options=optimizer_options(args.optimizer_option),
        rate_schedule=args.lr_schedule,
        warm_up_steps=args.warm_up,
        clip_norm=args.clip_norm,
        learning_rate=args.lr,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        seed=args.seed,
        schedule=args.schedule,
        update_window=args.update_window,
        rows=rows,
        dtype=args.dtype,
        precision=args.precision,
        overlap=not args.no_overlap,
        weights=args.weights,
        measure_memory=args.report is not None,
    )


def _training_options(args: argparse.Namespace) -> TrainingOptions:
    return TrainingOptions(
        epochs=args.epochs,
        max_steps=args.max_steps,
        checkpoint_folder=args.checkpoint,
        checkpoint_every=args.checkpoint_every,
        keep=args.keep,
        checkpoint_async=args.checkpoint_async,
        resume=args.resume,
        evaluate=not args.no_evaluation,
        prefetch=args.prefetch,
        watch=watch_options(args),
    )


def _step(history: History) -> int:
    return history.first_step + len(history.losses)


def _print_result(args: argparse.Namespace, history: History, report: RunReport) -> None:
    content = msgspec.json.encode({"history": history, "report": report})  # not finite: null
    if args.report is not None:
        if args.report.suffix == ".html":
            page = page_of(msgspec.json.decode(content, type=RunFile))
            write_atomically(args.report, page.encode())
        else:
            write_atomically(args.report, msgspec.json.format(content, indent=1) + b"\n")
    if args.json:
        print(content.decode())
        return
    if history.first_step:
        print(f"resumed after step {history.first_step}")
    for result in history.epochs:
        print(epoch_text(result))
    print(format_report(report))
    if history.stopped:
        print(f"stopped after step {_step(history)} as asked; go on with --resume")
    elif args.output is not None:
        print(f"wrote {args.output}")
