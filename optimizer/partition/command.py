"""The partition demos: 201 nodes, two chains that meet, on 3 or 96 devices, with the best value over time.

example: python -m stagewright.optimizer.partition local-search --devices 3 --csv best.csv --png best.png
example: python -m stagewright.optimizer.partition exact --devices 96 --matrix intended --json
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagewright.document import InputError

from . import brute_force, hierarchical, interval, local_search
from .demo import Demo, Devices, demo
from .problem import Partition
from .trace import Trace, write_csv, write_png

SOLVERS = ("brute-force", "local-search", "hierarchical", "exact")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    Raises:
        InputError: the input is wrong.
    """
    args = _parser().parse_args(argv)
    for option, least in (("seconds", 0), ("starts", 1), ("kicks", 0), ("seed", 0)):
        if not getattr(args, option) >= least:
            raise InputError(f"--{option} is {getattr(args, option)}, expected at least {least}")
    devices: Devices = args.devices or ("96" if args.solver == "hierarchical" else "3")
    if devices == "3" and args.matrix != "published":
        raise InputError("--matrix intended is for --devices 96; with 3 devices every link costs 1")
    chosen = demo(devices, args.matrix)
    trace = Trace(args.seconds)
    found = solve(args.solver, chosen, trace, args.starts, args.kicks, args.seed)
    report = report_of(args.solver, chosen, found, trace)
    if args.csv:
        write_csv(args.csv, trace)
    if args.png:
        write_png(args.png, trace, f"{args.solver}: {chosen.name}", report["seconds"])
    print(json.dumps(report) if args.json else text_of(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stagewright.optimizer.partition",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("solver", choices=SOLVERS)
    parser.add_argument(
        "--devices", choices=("3", "96"), help="default: 96 for hierarchical, else 3"
    )
    parser.add_argument(
        "--matrix",
        choices=("published", "intended"),
        default="published",
        help="link costs of the 96 devices (default: published)",
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="stop then (default: 120)")
    parser.add_argument("--starts", type=int, default=20, help="random starts (default: 20)")
    parser.add_argument(
        "--kicks", type=int, default=200, help="disturbances of each local optimum (default: 200)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: 0)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the best value over time")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the best value over time")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def solve(solver: str, chosen: Demo, trace: Trace, starts: int, kicks: int, seed: int) -> Partition:
    """Return what one of the SOLVERS finds for a demo."""
    if solver == "brute-force":
        return brute_force.solve(chosen.problem, trace)
    if solver == "local-search":
        return local_search.solve(chosen.problem, trace, starts=starts, kicks=kicks, seed=seed)
    if solver == "hierarchical":
        return hierarchical.solve(
            chosen.problem, chosen.levels, trace, starts=starts, kicks=kicks, seed=seed
        )
    assert solver == "exact", solver
    return interval.solve(chosen.problem, trace)


def report_of(solver: str, chosen: Demo, found: Partition, trace: Trace) -> dict[str, Any]:
    """Return the object that --json prints; docs/other-planners.md lists its keys."""
    nodes: list[list[int]] = [[] for _ in range(chosen.problem.num_devices)]
    for node, device in enumerate(found.labels):
        nodes[device].append(node)
    return {
        "demo": chosen.name,
        "solver": solver,
        "cost_model": "partition-demo",
        "space": found.space,
        "objective": "squared distances from the mean weight plus link costs; no time",
        "objective_ms": None,
        "value": found.value,
        "bound": found.bound,
        "gap": (found.value - found.bound) / found.value if found.value else 0.0,
        "seconds": trace.seconds,
        "stages": [
            {
                "layers": held,
                "replicas": [{"device_type": "device", "ranks": [device], "share": 1}],
            }
            for device, held in enumerate(nodes)
        ],
        "trace": [{"seconds": seconds, "value": value} for seconds, value in trace.improvements],
    }


def text_of(report: dict[str, Any]) -> str:
    """Return the report for people."""
    proof = "proven optimal" if report["gap"] <= 1e-12 else f"gap {report['gap']:.2%}"
    first, last = report["trace"][0], report["trace"][-1]
    lines = [
        report["demo"],
        f"value {report['value']:g}, bound {report['bound']:g}: {proof} "
        f"({report['solver']}, {report['seconds']:.2f} s measured)",
        f"first value {first['value']:g}, best after {last['seconds']:.3f} s measured",
        f"searched: {report['space']}",
    ]
    for device, stage in enumerate(report["stages"][:3]):
        lines.append(f"device {device}: {len(stage['layers'])} nodes {_shorten(stage['layers'])}")
    if len(report["stages"]) > 3:
        lines.append(f"... and {len(report['stages']) - 3} devices more (--json lists them)")
    return "\n".join(lines)


def _shorten(nodes: list[int]) -> str:
    """Return ascending numbers as ranges: 0-66, 70."""
    ranges: list[list[int]] = []
    for node in nodes:
        if ranges and node == ranges[-1][1] + 1:
            ranges[-1][1] = node
        else:
            ranges.append([node, node])
    shown = [f"{first}-{last}" if last > first else f"{first}" for first, last in ranges[:8]]
    return ", ".join(shown) + (", ..." if len(ranges) > 8 else "")
