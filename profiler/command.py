"""Trace a model into layers and measure each on this device: task -> layer graph.

example: stagewright profile stagewright.models.digits_cnn --device-type fast -b 8 16 -o fast.json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from tqdm import tqdm

from stagewright.allocation import keep_freed_memory
from stagewright.document import InputError, demand_writable
from stagewright.drawing import write_dot
from stagewright.task import Task, load_task
from stagewright.value import AUTOCAST_DTYPES

from .grid.axes import parse_axes
from .grid.measure import Progress, measure_grid
from .grid.table import demand_table, save_grid, write_grid_plot
from .grid.table import text as grid_text
from .measuring.measure import Repeats
from .picture import dot_source
from .plot import demand_plot, write_plot
from .profile import DTYPES, Request, profile
from .report import summary, text
from .tracing.trace import METHODS, Tracing


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
        "--autocast", choices=list(AUTOCAST_DTYPES),
        help="profile mixed precision (torch.autocast) over float32 parameters, as the run will compute",
    )  # fmt: skip
    add(
        "--emulate-slowdown", type=float, metavar="FACTOR",
        help="multiply all times: this device stands for a slower one, and every output says so",
    )  # fmt: skip
    add(
        "--trace", choices=METHODS, default="auto",
        help="torch.fx, torch.export, or the first of them that can follow the model (default)",
    )  # fmt: skip
    add(
        "--granularity", default="leaf", metavar="leaf|block|PATTERN",
        help="what is one layer: modules of torch.nn; members of lists too; modules whose path matches",
    )  # fmt: skip
    _add_measuring(made)
    add("--json", action="store_true", help="print one JSON object (docs/formats.md)")
    return made


def _add_measuring(made: argparse.ArgumentParser) -> None:
    """Add how long to measure, and what to make of it."""
    add = made.add_argument
    add("--repeats", type=int, default=Repeats.repeats, help="measurements of each layer")
    add(
        "--uncertainty", type=float, metavar="FRACTION",
        help="repeat on until spread / median / sqrt(repeats) of a step is this small (0.01)",
    )  # fmt: skip
    add(
        "--max-seconds", type=float, default=Repeats.max_seconds,
        help="stop after this time with the repeats there are",
    )  # fmt: skip
    add(
        "--reuse-identical", action="store_true",
        help="measure repeated identical blocks once; the file says which layers took over the costs",
    )  # fmt: skip
    add(
        "--peak-tflops",
        type=float,
        help="the device's peak; the report then states model flops utilisation",
    )
    add(
        "--grid", nargs="+", metavar="AXIS=NUMBERS",
        help="time the task's grid_model instead, as layers=3,6 width=768 length=1:1024:64 context=0,1x,2x; "
        "-o is then a table, .csv or .json, and --max-seconds is for each point",
    )  # fmt: skip
    add("--seed", type=int, default=0, help="of the model's initial values")
    add(
        "--dot", type=Path, help="graphviz source to write; an SVG beside it where dot is installed"
    )
    add(
        "--plot",
        type=Path,
        help="curves of time and memory by layer (.svg, .png, .pdf), by matplotlib",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    args = parser().parse_args(argv)
    keep_freed_memory()
    for path in (args.output, args.dot, args.plot):
        if path is not None:
            demand_writable(path)
    if args.plot is not None:
        demand_plot(args.plot)
    if args.peak_tflops is not None and not args.peak_tflops > 0:
        raise InputError(f"--peak-tflops is {args.peak_tflops}, expected a number above 0")
    request = Request(
        device_type=args.device_type,
        batch_sizes=tuple(args.batch_sizes),
        device=args.device,
        dtype=args.dtype,
        autocast=AUTOCAST_DTYPES.get(args.autocast),
        slowdown=args.emulate_slowdown,
        seed=args.seed,
        tracing=Tracing(method=args.trace, granularity=args.granularity),
        limits=Repeats(
            repeats=args.repeats,
            uncertainty=args.uncertainty,
            max_seconds=args.max_seconds,
            reuse_identical=args.reuse_identical,
        ),
    )
    bar = partial(tqdm, desc="profile", unit="repeat", file=sys.stderr, leave=False, disable=None)
    task = load_task(args.task)
    content, lines = (_grid if args.grid else _graph)(args, task, request, bar)
    if args.json:
        print(json.dumps(content))
    else:
        print(lines)
        print("wrote " + ", ".join(content["files"]))
    return 0


def _graph(
    args: argparse.Namespace, task: Task, request: Request, bar: Progress
) -> tuple[dict[str, Any], str]:
    """Write the layer graph and its pictures; return the summary as one object and for people."""
    graph = profile(task, request, bar)
    graph.save(args.output)
    files = [args.output] + (write_dot(args.dot, dot_source(graph)) if args.dot else [])
    if args.plot is not None:
        files.append(write_plot(args.plot, graph))
    content = summary(graph, peak_tflops=args.peak_tflops) | {"files": [str(f) for f in files]}
    return content, text(content)


def _grid(
    args: argparse.Namespace, task: Task, request: Request, bar: Progress
) -> tuple[dict[str, Any], str]:
    """Write the table of a grid and its plot; return it as one object and for people."""
    if args.dot is not None or args.reuse_identical:
        raise InputError("--grid: has no layers for --dot and --reuse-identical; leave them out")
    axes = parse_axes(args.grid)
    demand_table(args.output)
    grid = measure_grid(task, request, axes, bar)
    files = [save_grid(args.output, grid)]
    if args.plot is not None:
        files.append(write_grid_plot(args.plot, grid))
    content = msgspec.to_builtins(grid) | {"files": [str(path) for path in files]}
    return content, grid_text(grid)
