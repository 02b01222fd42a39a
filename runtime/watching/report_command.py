"""stagewright report: show what a training's --report FILE holds, as a table and as an HTML page."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import msgspec

from stagewright.document import InputError, demand_size, read_bytes, write_atomically

from .page import RunFile, page_of
from .report import format_report

MOST_BYTES = 64 * 2**20


def main(argv: Sequence[str] | None = None) -> int:
    """Show a report; return the exit status.

    Raises:
        InputError: the file is no report, or the page cannot be written.
    """
    parser = argparse.ArgumentParser(prog="stagewright report", description=__doc__)
    parser.add_argument("report", type=Path, help="what stagewright train --report FILE.json wrote")
    parser.add_argument("-o", "--output", type=Path, help="page to write (HTML, self-contained)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    args = parser.parse_args(argv)
    run = load_run(args.report)
    if args.output is not None:
        write_atomically(args.output, page_of(run).encode())
    if args.json:
        written = str(args.output) if args.output is not None else None
        print(json.dumps(msgspec.to_builtins(run) | {"page": written}))
        return 0
    print(format_report(run.report))
    if args.output is not None:
        print(f"wrote {args.output}")
    return 0


def load_run(path: Path) -> RunFile:
    """Return a report's file.

    Raises:
        InputError: it cannot be read, or is none.
    """
    demand_size(path, MOST_BYTES)
    try:
        return msgspec.json.decode(read_bytes(path), type=RunFile)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(
            f"{path}: {error}; name a file that this version's stagewright train --report FILE.json wrote"
        ) from None
