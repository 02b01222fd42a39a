"""Trace a model into layers and measure each on this device: task -> layer graph.

example: stagewright profile stagewright.models.digits_cnn --device-type fast -b 8 16 -o fast.json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from stagewright.allocation import keep_freed_memory
from stagewright.document import demand_writable
from stagewright.drawing import write_dot
from stagewright.task import load_task

from .measuring.measure import Repeats
from .picture import dot_source
from .profile import DTYPES, Request, profile
from .report import summary, text


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="stagewright profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("task", help="package.module or path/to/file.py, :factory behind it for another than build")
    add("--device-type", required=True, help="the name that cluster files know this device by")
    add("-b", "--batch-sizes", type=int, nargs="+", required=True, help="micro-batch sizes")
    add("-o", "--output", type=Path, required=True, help="layer graph to write (JSON)")
    add("--device", default="cpu", help="cpu or cuda:0 (default cpu, one thread)")
    add("--dtype", choices=list(DTYPES), default="float32", help="of parameters and inputs")
    add(
        "--emulate-slowdown", type=float, metavar="FACTOR",
        help="multiply all times: this device stands for a slower one, and every output says so",
    )  # fmt: skip
    add("--repeats", type=int, default=Repeats.repeats, help="measurements of each layer")
    add(
        "--max-seconds", type=float, default=Repeats.max_seconds,
        help="stop after this time with the repeats there are",
    )  # fmt: skip
    add("--seed", type=int, default=0, help="of the model's initial values")
    add(
        "--dot", type=Path, help="graphviz source to write; an SVG beside it where dot is installed"
    )
    add("--json", action="store_true", help="print one JSON object (docs/formats.md)")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    args = parser().parse_args(argv)
    keep_freed_memory()
    for path in (args.output, args.dot):
        if path is not None:
            demand_writable(path)
    request = Request(
        device_type=args.device_type,
        batch_sizes=tuple(args.batch_sizes),
        device=args.device,
        dtype=args.dtype,
        slowdown=args.emulate_slowdown,
        seed=args.seed,
        limits=Repeats(repeats=args.repeats, max_seconds=args.max_seconds),
    )
    bar = partial(tqdm, desc="profile", unit="repeat", file=sys.stderr, leave=False, disable=None)
    graph = profile(load_task(args.task), request, bar)
    graph.save(args.output)
    files = [args.output] + (write_dot(args.dot, dot_source(graph)) if args.dot else [])
    content = summary(graph) | {"files": [str(path) for path in files]}
    if args.json:
        print(json.dumps(content))
    else:
        print(text(content))
        print("wrote " + ", ".join(content["files"]))
    return 0
