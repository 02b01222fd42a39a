"""stagewright launch: print or run the torchrun of every server of a plan."""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from stagewright.cluster import Cluster
from stagewright.document import InputError
from stagewright.plan import Plan

from .batch_script import batch_script
from .elastic import PROBE_EVERY_S, ElasticOptions, Supervisor
from .fleet import run_once
from .lines import Launch, ServerLine, lines_of

EPILOG = """\
What follows -- goes to stagewright train on every server:
  stagewright launch cluster.toml stages -- --task task.py --epochs 4 --checkpoint /shared/checkpoints
Servers are reached by their names in the cluster file, or as --host says. Every server must see the stage
modules, the task, the checkpoints and this Python under the same paths.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 1 if training failed.

    Raises:
        InputError: the input is wrong.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    train_options = arguments[cut + 1 :]
    args = _parser().parse_args(arguments[:cut])
    _check_elastic(args)
    launch = _launch(args, train_options)
    ssh = tuple(shlex.split(args.ssh)) if args.ssh is not None else ()
    if args.elastic:
        return _run_elastic(args, launch, ssh, train_options)
    lines = lines_of(launch, Plan.load(args.directory / "plan.json"))
    if args.run:
        return int(any(run_once(lines, ssh, launch.python).values()))
    if args.sbatch:
        print(batch_script(lines, str(args.directory)), end="")
    else:
        _print(lines, as_json=args.json)
    return 0


def _launch(args: argparse.Namespace, train_options: Sequence[str]) -> Launch:
    hosts = dict(word.partition("=")[::2] for word in args.host)
    servers = [server.name for server in Cluster.load(args.cluster).servers]
    for name, address in hosts.items():
        if name not in servers or not address:
            raise InputError(
                f"--host is {name}={address}, expected SERVER=ADDRESS with a server of {args.cluster}: "
                f"{', '.join(servers)}"
            )
    if not 1 <= args.port <= 65000:
        raise InputError(f"--port is {args.port}, expected 1 to 65000")
    if args.max_restarts < 0:
        raise InputError(f"--max-restarts is {args.max_restarts}, expected at least 0")
    if args.max_restarts and "--resume" not in train_options:
        raise InputError("--max-restarts needs --checkpoint FOLDER --resume after --")
    return Launch(
        cluster=args.cluster,
        directory=args.directory,
        train_options=tuple(train_options),
        hosts=hosts,
        python=args.python,
        port=args.port,
        max_restarts=args.max_restarts,
    )


def _check_elastic(args: argparse.Namespace) -> None:
    """Raise InputError if an option that only --elastic reads is given without it, or out of its range."""
    for name in ("optimize", "work", "probe_every"):
        if getattr(args, name) is not None and not args.elastic:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} is for --elastic; leave it out, or give --elastic")
    if args.probe_every is not None and not 0 < args.probe_every < math.inf:
        raise InputError(f"--probe-every is {args.probe_every}, expected seconds above 0")


def _run_elastic(
    args: argparse.Namespace, launch: Launch, ssh: Sequence[str], train_options: Sequence[str]
) -> int:
    if args.max_restarts or args.sbatch:
        raise InputError("--elastic restarts by itself; leave out --max-restarts and --sbatch")
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--checkpoint", type=Path)
    finder.add_argument("--resume", action="store_true")
    found, _ = finder.parse_known_args(list(train_options))
    if found.checkpoint is None:
        raise InputError("--elastic needs --checkpoint FOLDER after --: it goes on from there")
    options = ElasticOptions(
        checkpoints=found.checkpoint,
        work_folder=args.work or found.checkpoint.parent / "elastic",
        optimize_options=tuple(shlex.split(args.optimize or "")),
        probe_every_s=PROBE_EVERY_S if args.probe_every is None else args.probe_every,
        quiet=args.json,
    )
    if not found.resume:
        launch = replace(launch, train_options=(*launch.train_options, "--resume"))
    supervisor = Supervisor(launch, ssh, options)
    try:
        supervisor.run()
    finally:
        if args.json:
            print(json.dumps({"generations": msgspec.to_builtins(supervisor.generations)}))
    return 0


def _print(lines: Sequence[ServerLine], *, as_json: bool) -> None:
    if as_json:
        named = [
            {
                "server": line.server,
                "host": line.host,
                "ranks": line.ranks,
                "command": line.command,
                "text": line.text,
            }
            for line in lines
        ]
        print(json.dumps({"lines": named}))
        return
    for line in lines:
        ranks = ", ".join(map(str, line.ranks))
        print(f"# on server {line.server} ({line.host}), ranks {ranks} of the plan:\n{line.text}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stagewright launch",
        usage="%(prog)s CLUSTER DIRECTORY [options] [-- options of stagewright train]",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("cluster", type=Path, help="cluster file (TOML)")
    add("directory", type=Path, help="stage modules that stagewright generate wrote")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--run", action="store_true", help="run the lines; default: print them")
    what.add_argument("--sbatch", action="store_true", help="print a batch script for Slurm")
    what.add_argument(
        "--elastic",
        action="store_true",
        help="run, and plan anew and go on when servers vanish or appear (edit CLUSTER while it runs)",
    )
    add("--host", action="append", default=[], metavar="SERVER=ADDRESS")
    add("--ssh", metavar="COMMAND", help="what runs a command line on a host (default: ssh)")
    add("--python", default=sys.executable, metavar="FILE", help="default: this one")
    add("--port", type=int, default=29400, help="on the first server (default: 29400)")
    add("--max-restarts", type=int, default=0, metavar="N", help="torchrun's, from the checkpoint")
    elastic = parser.add_argument_group("with --elastic")
    elastic.add_argument("--optimize", metavar="OPTIONS", help="of stagewright optimize")
    elastic.add_argument(
        "--work",
        type=Path,
        metavar="FOLDER",
        help="for new plans and stages (default: elastic/ beside the checkpoints)",
    )
    elastic.add_argument(
        "--probe-every", type=float, metavar="S", help="between looks for servers (default: 30)"
    )
    add("--json", action="store_true", help="print one JSON object (docs/formats.md)")
    return parser


if __name__ == "__main__":
    from stagewright.cli import run

    sys.exit(run("stagewright launch", main, None))
