"""The published inputs of dnn-partitioning and Piper: their planners' values beside ours, under their models.

python benchmarks/public_planners.py --data FOLDER
FOLDER holds dnn-partitioning/bert24_inference.json and bert24_training.json (msr-fiddle/dnn-partitioning) and
piper/bert32a100.json (msr-fiddle/piper). All values are predicted by the named cost model; seconds are
measured here and include reading the file.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagewright.optimizer.formats.piper_search import Limits
from stagewright.optimizer.formats.planning import plan_dnn_partitioning, plan_piper

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30
BERT24 = {
    "bert24_inference": (17.78990625, 20.0840, 17.7776),
    "bert24_training": (41.7458125, 49.4049, 39.9432),
}
"""Their programme over ideals, their human expert, their local search over any assignments; ms per sample."""
BERT32: tuple[tuple[str, int, int, Limits, float | None, float | None], ...] = (
    ("", 8, 80, Limits(), 0.122007269, 0.122007269),
    ("", 8, 8, Limits(), 0.16585575, 0.230978),
    ("", 8, 2, Limits(), None, None),
    ("", 32, 8, Limits(), 0.0415154504, 0.0513510889),
    ("", 64, 8, Limits(), 0.0202005503, 0.0257245478),
    ("no replicas", 64, 8, Limits(most_replicas=1), 0.07390625, None),
    ("no tensor parallelism", 64, 8, Limits(most_tensor_parallel=1), 0.0202005503, None),
    ("no recomputation", 64, 8, Limits(recomputation=False), 0.0279882783, None),
)
"""What is left out, devices, GiB of each; their planner and their equal split, s per sample, at 25 GiB/s."""


def bert24_rows(folder: Path) -> list[dict[str, Any]]:
    """Return a row per workload and way to solve it."""
    found = []
    for name, (ideals_ms, expert_ms, any_ms) in BERT24.items():
        path = folder / "dnn-partitioning" / f"{name}.json"
        for way, contiguous in (("ideals", True), ("cp-sat", True), ("cp-sat", False)):
            report = plan_dnn_partitioning(
                path,
                solver="ideals" if way == "ideals" else "cp-sat",
                contiguous=contiguous,
                time_limit_s=120,
            )
            found.append(
                {
                    "workload": name,
                    "splits": "contiguous" if contiguous else "any",
                    "solver": way,
                    "ms": report["objective_ms"],
                    "bound_ms": report["bound_ms"],
                    "seconds": report["seconds"],
                    "published_ms": ideals_ms if contiguous else any_ms,
                    "expert_ms": expert_ms,
                }
            )
    return found


def bert32_rows(folder: Path) -> list[dict[str, Any]]:
    """Return a row per case of Piper's BERT-32."""
    found = []
    for left_out, devices, memory_gib, limits, theirs, equal_split in BERT32:
        report = plan_piper(
            folder / "piper" / "bert32a100.json",
            num_devices=devices,
            memory_bytes=memory_gib * GIB,
            bandwidth_bytes_per_s=25 * GIB,
            limits=limits,
        )
        value = report["objective_ms"]
        found.append(
            {
                "case": f"{devices} x {memory_gib} GiB" + (f", {left_out}" if left_out else ""),
                "s": None if value is None else value / 1e3,
                "reason": report["reason"],
                "stages": len(report["stages"]),
                "seconds": report["seconds"],
                "published_s": theirs,
                "equal_split_s": equal_split,
            }
        )
    return found


def bert24_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return dnn-partitioning's table."""
    lines = [
        "| workload | splits | solver | ms per sample | bound | s | theirs | their expert |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['workload']} | {row['splits']} | {row['solver']} | {row['ms']:.8f} | "
            f"{row['bound_ms']:.8f} | {row['seconds']:.2f} | {row['published_ms']:g} | {row['expert_ms']:g} |"
        )
    return "\n".join(lines)


def bert32_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return Piper's table."""
    lines = [
        "| BERT-32 | s per sample, optimal | stages | s | theirs | equal split |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        value = "none" if row["s"] is None else f"{row['s']:.10f}"
        theirs = "none" if row["published_s"] is None else f"{row['published_s']:.9g}"
        equal = "-" if row["equal_split_s"] is None else f"{row['equal_split_s']:.9g}"
        lines.append(
            f"| {row['case']} | {value} | {row['stages']} | {row['seconds']:.2f} | {theirs} | {equal} |"
        )
    lines += [f"\n{row['case']}: {row['reason']}" for row in rows if row["reason"]]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if not args.data.is_dir():
        print(f"no folder {args.data}; name one with the published files: --data", file=sys.stderr)
        return 0
    bert24, bert32 = bert24_rows(args.data), bert32_rows(args.data)
    if args.json:
        print(json.dumps({"dnn-partitioning": bert24, "piper": bert32}))
    else:
        print(bert24_markdown(bert24), bert32_markdown(bert32), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
