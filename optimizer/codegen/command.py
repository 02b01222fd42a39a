"""stagewright generate: a plan becomes a package with one readable PyTorch module per stage."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagewright.document import demand_writable
from stagewright.drawing import write_dot
from stagewright.plan import Plan

from .package import generate, load_graph
from .picture import cut_graph_source

EXAMPLE = "example: stagewright generate plan.json -o stages"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="stagewright generate", description=__doc__, epilog=EXAMPLE
    )
    parser.add_argument("plan", type=Path, help="plan file (JSON) of stagewright optimize")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder to write: new, empty or generated"
    )
    parser.add_argument(
        "--dot",
        type=Path,
        help="draw the cut graph: graphviz source, and an SVG beside it where dot is installed",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    if arguments.dot is not None:
        demand_writable(arguments.dot)
    result = dataclasses.asdict(generate(arguments.plan, arguments.output))
    result["pictures"] = []
    if arguments.dot is not None:
        plan = Plan.load(arguments.plan)
        source = cut_graph_source(plan, load_graph(plan, arguments.plan)[0])
        result["pictures"] = [str(path) for path in write_dot(arguments.dot, source)]
    print(json.dumps(result, indent=1) if arguments.json else format_result(result))
    return 0


def format_result(result: dict[str, Any]) -> str:
    """Return what people read: a line for each file, with sizes."""
    lines = [f"{result['folder']}: {result['task']} in {len(result['stages'])} stages"]
    for stage in result["stages"]:
        megabytes = stage["parameter_bytes"] / 1e6
        note = ", takes modules of the original" if stage["needs_original"] else ""
        lines.append(
            f"  {stage['file']:12} {stage['num_layers']:4} layers, {megabytes:9.3f} MB of parameters, "
            f"takes {len(stage['inputs'])}, sends {len(stage['outputs'])}, "
            f"{stage['num_lines']} lines{note}"
        )
    lines.append(f"  plan.json    sha256 {result['plan_sha256'][:16]}")
    lines += [f"  drew {path}" for path in result["pictures"]]
    return "\n".join(lines)
