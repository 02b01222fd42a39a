"""stagewright replay: real ranks and messages, sleeping in place of computing. Starts its own ranks."""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from stagewright.plan import Plan
from stagewright.runtime.arguments import check_numbers
from stagewright.runtime.ranks.starting import run_on_ranks
from stagewright.runtime.ranks.world import World
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
    run = partial(_replay, args, plan)
    return run_on_ranks(parser.prog, __name__, arguments, plan, run, timeout_s=args.timeout)


def _replay(args: argparse.Namespace, plan: Plan, world: World) -> int:
    result = replay(plan, world, args.steps, args.schedule)
    if result is not None:
        print(json.dumps(msgspec.to_builtins(result)) if args.json else text_of(result))
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
