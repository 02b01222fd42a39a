"""The command line: `stagewright TOOL ...` imports only the tool asked for and runs its main."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from stagewright.document import InputError

COMMANDS = {
    "profile": ("stagewright.profiler.command", "model -> layer graph, measured on this device"),
    "links": (
        "stagewright.profiler.links_command",
        "latency and bandwidth between ranks; start it with torchrun",
    ),
    "optimize": ("stagewright.optimizer.command", "layer graphs and cluster -> plan"),
    "schedule": (
        "stagewright.optimizer.schedule_command",
        "plan -> its schedule as text and pictures",
    ),
    "check": ("stagewright.optimizer.check_command", "plan -> is its lower bound proven?"),
    "generate": ("stagewright.optimizer.codegen.command", "plan -> stage modules"),
    "verify": (
        "stagewright.runtime.checking.verify_command",
        "stage modules -> is a step the same as one process's?",
    ),
    "replay": (
        "stagewright.runtime.checking.replay_command",
        "plan -> its messages between real ranks, sleeping in place of computing",
    ),
    "report": (
        "stagewright.runtime.watching.report_command",
        "a training's report -> table and HTML page",
    ),
    "launch": (
        "stagewright.runtime.launching.command",
        "cluster and stage modules -> one torchrun per server, printed or run",
    ),
    "train": ("stagewright.runtime.command", "stage modules -> weights; start it with torchrun"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; return its exit status: 0, or 2 if the input is wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: stagewright COMMAND ...   (stagewright COMMAND --help)\n")
        for name, (_, summary) in COMMANDS.items():
            print(f"  {name:10} {summary}")
        print("\nFiles are written whole or not at all; missing folders are made for them.")
        return 0
    name = arguments.pop(0)
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(f"stagewright: command is {name!r}, expected one of {known}", file=sys.stderr)
        return 2
    tool = importlib.import_module(COMMANDS[name][0])
    return run(f"stagewright {name}", tool.main, arguments)


def run(
    program: str, tool: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None
) -> int:
    """Run a tool's main; print a wrong input as one line and return 2 then."""
    try:
        return tool(argv)
    except InputError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output has gone, as in `| head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what is left of the output goes nowhere
        return 141
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
