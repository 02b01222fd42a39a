"""How far the costs of the layers add up to the whole step, measured in one piece in the same run.

python benchmarks/profile_sum.py                    # a CPU, one thread
python benchmarks/profile_sum.py --device cuda:0
python benchmarks/profile_sum.py --models gnmt unet gpt:build_gpt2_small
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

CASES = {
    "digits_cnn": 16,
    "resnet": 16,
    "gpt": 8,
    "gnmt": 8,
    "experts": 8,
    "unet": 4,
    "graph_nets": 4,
    "transformers_text": 4,
    "transformers_text:build_bert": 4,
    "transformers_text:build_llama": 4,
    "transformers_vit": 4,
    "alexnet": 8,
    "densenet": 2,
    "inception": 2,
    "resnet50": 2,
    "minkowski.resnet": 4,
    "minkowski.unet": 4,
    "gpt:build_gpt2_small": 2,
    "vgg16": 2,
}
"""Samples in a micro-batch, by task in stagewright.models."""
ON_GPU = 16
"""Times as many samples on a GPU."""


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
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--max-seconds", type=float, default=60.0, help="per model")
    args = parser.parse_args(argv)
    keep_freed_memory()
    factor = 1 if args.device == "cpu" else ON_GPU
    limits = Repeats(repeats=args.repeats, max_seconds=args.max_seconds)
    rows = [row_of(name, factor * CASES[name], args.device, limits) for name in args.models]
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(run("profile_sum", main, None))
