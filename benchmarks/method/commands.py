"""Commands from the repository's root, one thread each; where one fails the benchmark ends with its words."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def one_thread() -> dict[str, str]:
    """Return the environment of a process that computes with one thread."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def run(*arguments: str, under: Sequence[str] = ()) -> str:
    """Run Python with these arguments, under a command such as chrt; return what it printed."""
    command = (*under, sys.executable, *arguments)
    done = subprocess.run(
        command, cwd=ROOT, env=one_thread(), check=False, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def stagewright(*arguments: str, under: Sequence[str] = ()) -> str:
    """Run a stagewright command, under another such as chrt; return what it printed."""
    return run("-m", "stagewright.cli", *arguments, under=under)


def ranks_of(num_ranks: int, *program: str) -> tuple[str, ...]:
    """Return the arguments of Python that start so many ranks of a program under torchrun."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks))
    return (*launcher, *program)


def start_ranks(num_ranks: int, *program: str) -> None:
    """Run so many ranks of a program, which print to where this process prints."""
    command = (sys.executable, *ranks_of(num_ranks, *program))
    done = subprocess.run(command, cwd=ROOT, env=one_thread(), check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed")


def measure_links(path: Path) -> str:
    """Measure the links between two ranks on this machine; return the file's text."""
    run(*ranks_of(2, "-m", "stagewright.profiler.links_command", "-o", str(path)))
    return path.read_text()
