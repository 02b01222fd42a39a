"""The partition demos: what each solver finds, how soon, and what the published programmes found.

python benchmarks/partition_demos.py
Values are of the demos' objective (no time); seconds are measured on this machine, the published ones on its
authors' machine.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from stagewright.optimizer.partition.command import SOLVERS, report_of, solve
from stagewright.optimizer.partition.demo import Devices, Matrix, demo
from stagewright.optimizer.partition.trace import Trace

DEMOS: tuple[tuple[Devices, Matrix], ...] = (
    ("3", "published"),
    ("96", "published"),
    ("96", "intended"),
)
PUBLISHED = {
    ("3", "published", "brute-force"): "77338 after 103 s",
    ("3", "published", "local-search"): "120",
    ("96", "published", "local-search"): "384.63 in 181 s",
    ("96", "published", "hierarchical"): "96.63 in 5.78 s",
}
"""From the demos' report; nothing is published for the intended matrix."""


def rows(seconds: float) -> list[dict[str, Any]]:
    """Return a row per demo and solver."""
    found = []
    for devices, matrix in DEMOS:
        chosen = demo(devices, matrix)
        for solver in SOLVERS:
            trace = Trace(seconds)
            partition = solve(solver, chosen, trace, starts=20, kicks=200, seed=0)
            report = report_of(solver, chosen, partition, trace)
            found.append(
                {
                    "demo": chosen.name,
                    "solver": solver,
                    "value": report["value"],
                    "bound": report["bound"],
                    "seconds_to_best": trace.improvements[-1][0],
                    "seconds": report["seconds"],
                    "published": PUBLISHED.get((devices, matrix, solver), "-"),
                }
            )
    return found


def markdown(found: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table."""
    lines = [
        "| demo | solver | value | bound | best after s | ended after s | theirs, published |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in found:
        value = f"**{row['value']:g}**" if row["value"] <= row["bound"] else f"{row['value']:g}"
        lines.append(
            f"| {row['demo']} | {row['solver']} | {value} | {row['bound']:g} | "
            f"{row['seconds_to_best']:.2f} | {row['seconds']:.2f} | {row['published']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="per solver (default: 20)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    found = rows(args.seconds)
    print(json.dumps({"rows": found}) if args.json else markdown(found))


if __name__ == "__main__":
    main()
