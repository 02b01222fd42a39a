"""How far the costs of the layers add up to the whole step, measured in one piece in the same run.

python benchmarks/profile_sum.py                    # a CPU, one thread
python benchmarks/profile_sum.py --device cuda:0
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from stagewright.allocation import keep_freed_memory
from stagewright.cli import run
from stagewright.profiler.measuring.measure import Repeats
from stagewright.profiler.profile import Request, profile
from stagewright.profiler.report import sum_against_whole
from stagewright.task import load_task

CASES = {"digits_cnn": 16, "resnet": 16, "gpt": 8, "vgg16": 2}
"""Samples in a micro-batch, by model."""
CASES_ON_GPU = {"digits_cnn": 256, "resnet": 256, "gpt": 64, "vgg16": 32}


def row_of(name: str, batch_size: int, device: str, limits: Repeats) -> dict[str, Any]:
    """Return one model's figures; times in ms."""
    request = Request(device_type="here", batch_sizes=(batch_size,), device=device, limits=limits)
    graph = profile(load_task(f"stagewright.models.{name}"), request)
    return {"model": name, "layers": len(graph.steps)} | sum_against_whole(graph, batch_size)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table."""
    lines = [
        "| model | micro-batch | layers | forward: sum / whole ms | ratio | backward: sum / whole ms | ratio "
        "| both | repeats |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [row["model"], str(row["batch_size"]), str(row["layers"])]
        for what in ("forward", "backward"):
            layers_ms, whole_ms = row[f"layers_{what}_ms"], row[f"whole_{what}_ms"]
            cells += [f"{layers_ms:.2f} / {whole_ms:.2f}", f"{layers_ms / whole_ms:.3f}"]
        cells += [f"**{row['sum_over_whole']:.3f}**", str(row["repeats"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--max-seconds", type=float, default=60.0, help="per model")
    args = parser.parse_args(argv)
    keep_freed_memory()
    cases = CASES if args.device == "cpu" else CASES_ON_GPU
    limits = Repeats(repeats=args.repeats, max_seconds=args.max_seconds)
    print(markdown([row_of(name, size, args.device, limits) for name, size in cases.items()]))
    return 0


if __name__ == "__main__":
    sys.exit(run("profile_sum", main, None))
