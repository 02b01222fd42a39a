"""stagewright verify: does a plan's step give one process's loss and gradients? Starts its own ranks."""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from stagewright.allocation import keep_freed_memory
from stagewright.document import demand_writable
from stagewright.runtime.arguments import check_numbers
from stagewright.runtime.ranks.starting import run_on_ranks
from stagewright.runtime.ranks.world import World
from stagewright.runtime.storage.package import StagePackage, load_package
from stagewright.runtime.training.settings import Settings
from stagewright.scheduling import TRAINING_SCHEDULES
from stagewright.task import Task, load_task

from .verify import Verification, verify


def main(argv: Sequence[str] | None = None) -> int:
    """Verify; return 0 if every dtype passes, 1 if one does not.

    Raises:
        InputError: the input is wrong.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="stagewright verify", description=__doc__)
    add = parser.add_argument
    add(
        "directory",
        type=Path,
        help="stage modules that stagewright generate wrote (code: trust it)",
    )
    add(
        "--task",
        required=True,
        help="package.module or path/to/file.py; loss and dataset are optional",
    )
    add("--seed", type=int, default=0)
    add("--schedule", choices=TRAINING_SCHEDULES, help="default: the plan's")
    add("--save", type=Path, help="write one process's weights, losses and gradients (safetensors)")
    add("--device", default="cpu", help="auto, cpu, cuda or cuda:N")
    add("--timeout", type=float, default=60.0, metavar="S", help="longest wait for another rank")
    add("--json", action="store_true", help="print one JSON object instead of text")
    args = parser.parse_args(arguments)
    check_numbers(args)
    if args.save is not None:
        demand_writable(args.save)
    package = load_package(args.directory)
    task = load_task(args.task)
    task.function(package.plan.factory)
    keep_freed_memory()
    run = partial(_verify, args, package, task)
    return run_on_ranks(
        parser.prog,
        __name__,
        arguments,
        package.plan,
        run,
        device=args.device,
        timeout_s=args.timeout,
    )


def _verify(args: argparse.Namespace, package: StagePackage, task: Task, world: World) -> int:
    found = []
    for dtype in dict.fromkeys(("float64", package.plan.dtype)):
        settings = Settings(seed=args.seed, dtype=dtype, schedule=args.schedule)
        save = args.save if dtype == package.plan.dtype else None
        found.append(verify(package, task, world, settings, save))
    results = [result for result in found if result is not None]
    if world.rank == 0:
        _print(results, package.plan.num_ranks, as_json=args.json)
    return 0 if all(result.passed for result in results) else 1


def _print(results: Sequence[Verification], num_ranks: int, *, as_json: bool) -> None:
    passed = all(result.passed for result in results)
    if as_json:
        dtypes = [msgspec.to_builtins(r) | {"passed": r.passed} for r in results]
        print(json.dumps({"passed": passed, "num_ranks": num_ranks, "dtypes": dtypes}))
        return
    print(
        f"one step on {num_ranks} ranks against one process running the original model (measured):"
    )
    for result in results:
        print(
            f"  {result.dtype}: loss {result.loss:.6g}, relative difference {result.loss_difference:.1e}; "
            f"worst of {result.num_gradients} gradients {result.worst_gradient} "
            f"{result.worst_difference:.1e}, at most {result.tolerance:.0e} allowed: "
            f"{'passed' if result.passed else 'FAILED'}"
        )


if __name__ == "__main__":
    from stagewright.cli import run

    sys.exit(run("stagewright verify", main, None))
