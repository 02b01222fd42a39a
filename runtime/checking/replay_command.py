"""stagewright replay: real ranks and messages, sleeping in place of computing. Starts its own ranks."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
import torch

from stagewright.plan import Plan
from stagewright.runtime.arguments import check_numbers
from stagewright.runtime.ranks.faults import run_rank
from stagewright.runtime.ranks.roll_call import naming_the_missing
from stagewright.runtime.ranks.whereabouts import Whereabouts
from stagewright.runtime.ranks.world import (
    check_world_size,
    join_world,
    leave_world,
    ranks_started,
    start_ranks,
)
from stagewright.scheduling import TRAINING_SCHEDULES

from .replay import Replay, replay


def main(argv: Sequence[str] | None = None) -> int:
    """Replay a plan; return the exit status.

    Raises:
        InputError: the input is wrong.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="stagewright replay", description=__doc__)
    parser.add_argument("plan", type=Path, help="plan that stagewright optimize wrote")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--schedule", choices=TRAINING_SCHEDULES, help="default: the plan's")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="longest wait")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    args = parser.parse_args(arguments)
    check_numbers(args)
    plan = Plan.load(args.plan)
    rank, size, _ = ranks_started(os.environ)
    if size == 1 and plan.num_ranks > 1:
        return start_ranks(__name__, plan.num_ranks, arguments)
    check_world_size(plan, size)
    torch.set_num_threads(1)
    whereabouts = Whereabouts(f"rank {rank}")
    run = partial(_replay, args, plan, rank, size, whereabouts)
    return run() if size == 1 else run_rank(parser.prog, whereabouts, run)


def _replay(
    args: argparse.Namespace, plan: Plan, rank: int, size: int, whereabouts: Whereabouts
) -> int:
    world = join_world(rank, size, torch.device("cpu"), args.timeout, whereabouts)
    with naming_the_missing(world):
        result = replay(plan, world, args.steps, args.schedule)
    if result is not None:
        print(json.dumps(msgspec.to_builtins(result)) if args.json else text_of(result))
    leave_world()
    return 0


def text_of(result: Replay) -> str:
    """Return the replay for people."""
    ratio = result.measured_step_ms / result.simulated_step_ms
    lines = [
        f"step: simulated {result.simulated_step_ms:.2f} ms, replayed {result.measured_step_ms:.2f} ms "
        f"(median of {result.num_steps}; messages measured, computing slept), ratio {ratio:.3f}",
        "from  to  messages/step   bytes/step",
    ]
    lines += [
        f"{t.sender:4}  {t.receiver:2}  {t.messages:13}  {t.num_bytes:11}" for t in result.traffic
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    from stagewright.cli import run

    sys.exit(run("stagewright replay", main, None))
