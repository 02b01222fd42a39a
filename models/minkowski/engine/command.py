"""The command line that builds and installs MinkowskiEngine."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stagewright.document import InputError

from .build import default_cache, install


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m stagewright.models.minkowski.engine",
        description="Build MinkowskiEngine 0.5.4 with our repairs for the installed torch, on CPU, and "
        "install it into this environment. The first build takes about 5 minutes of two processors; its "
        "wheel is kept, so the next call takes seconds.",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=default_cache(),
        help="folder that keeps the wheel (%(default)s)",
    )
    parser.add_argument(
        "--source", type=Path, help="MinkowskiEngine-0.5.4.tar.gz, where PyPI is out of reach"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        help="compilers at a time, each up to 2 GiB (as processors and memory allow)",
    )
    args = parser.parse_args(argv)
    try:
        install(args.cache, args.source, args.jobs, lambda line: print(line, flush=True))
    except InputError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    return 0
