"""Peak memory of every rank, measured by the allocator, against the plan's prediction.

Run with: .venv/bin/python benchmarks/peak_memory.py
Each row is a run of stagewright train --report on real ranks (gloo). recompute: every stage but the last runs
forward again. Reach: within 5 % or 20 MB on every rank.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from method.clusters import cluster_text
from method.commands import ranks_of, run, stagewright

from stagewright.optimizer.assemble import predict
from stagewright.optimizer.load import load_inputs
from stagewright.optimizer.problem import Problem
from stagewright.plan import Plan

MEMORY_BYTES = 16_000_000_000
NUM_MICROBATCHES = 4
OPTIMIZER = "adamw"
NEAR = 0.05
NEAR_BYTES = 20_000_000


@dataclass(frozen=True)
class Model:
    """A task, its micro-batch size, and the plans that are run: cuts and replicas of each stage."""

    task: str
    microbatch_size: int
    plans: tuple[tuple[str, str], ...]


MODELS = {
    "digits_cnn": Model(
        "models/digits_cnn.py", 128, (("", "1"), ("features.6", "1,1"), ("features.6", "2,1"))
    ),
    "gpt": Model(
        "models/gpt.py",
        32,
        (("", "1"), ("blocks.2.norm1", "1,1"), ("blocks.1.norm1,blocks.3.norm1", "1,1,1")),
    ),
    "resnet": Model(
        "models/resnet.py", 128, (("", "1"), ("layer2.0.conv1", "1,1"), ("layer2.0.conv1", "1,2"))
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--autocast", choices=["bf16", "fp16"])
    args = parser.parse_args()
    print(
        "| model | schedule | recompute | stage, rank | predicted MB | measured MB | measured / predicted |"
    )
    print("|---|---|---|---|--:|--:|--:|")
    good = total = 0
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            for row in rows_of(name, MODELS[name], Path(folder), args.autocast):
                print(row.text, flush=True)
                good, total = good + row.is_near, total + 1
    print(f"within 5 % or 20 MB: {good} of {total} ranks")


@dataclass(frozen=True)
class Row:
    text: str
    is_near: bool


def rows_of(name: str, model: Model, folder: Path, autocast: str | None) -> Any:
    """Yield a row for every rank of every run of a model."""
    (folder / "cluster.toml").write_text(
        cluster_text({"here": {"cpu": 3}}, memory_bytes=MEMORY_BYTES)
    )
    size = str(model.microbatch_size)
    profile = ("profile", model.task, "--device-type", "cpu", "-b", size, "--repeats", "1")
    mixed = ("--autocast", autocast) if autocast else ()
    stagewright(*profile, "-o", str(folder / "cpu.json"), *mixed)
    for cuts, replicas in model.plans:
        for schedule in ("gpipe", "1f1b"):
            for recompute in (False, True) if cuts else (False,):
                plan = make_plan(model, folder, cuts, replicas, schedule, recompute)
                for replica in trained(model, plan, folder):
                    predicted, measured = (
                        replica[f"{kind}_peak_bytes"] for kind in ("predicted", "measured")
                    )
                    apart = abs(measured - predicted)
                    yield Row(
                        f"| {name} {replicas} | {schedule} | {'yes' if recompute else ''} | "
                        f"{replica['stage']}, {replica['rank']} | {predicted / 1e6:.1f} | "
                        f"{measured / 1e6:.1f} | {measured / predicted:.3f} |",
                        apart <= max(NEAR * predicted, NEAR_BYTES),
                    )


def make_plan(
    model: Model, folder: Path, cuts: str, replicas: str, schedule: str, recompute: bool
) -> Path:
    """Write a plan and its stages; return the plan's file."""
    path, cluster = folder / "plan.json", folder / "cluster.toml"
    batch = str(model.microbatch_size * NUM_MICROBATCHES)
    options = ("--batch-size", batch, "--optimizer", OPTIMIZER, "--schedule", schedule)
    given = ("--replicas", replicas, *(("--cuts", cuts) if cuts else ()))
    stagewright("optimize", str(cluster), "-o", str(path), *options, *given)
    if recompute:
        plan = Plan.load(path)
        stages = tuple(s.replace(recompute=s is not plan.stages[-1]) for s in plan.stages)
        problem = Problem(
            inputs=load_inputs(cluster),
            microbatch_size=plan.microbatch_size,
            num_microbatches=plan.num_microbatches,
            schedule=plan.schedule,
            optimizer=OPTIMIZER,
        )
        predict(plan.replace(stages=stages), problem).plan.save(path)
    stagewright("generate", str(path), "-o", str(folder / "stages"))
    return path


def trained(model: Model, plan: Path, folder: Path) -> list[dict[str, Any]]:
    """Train a few steps; return the report's replicas."""
    limits = ("--max-steps", "3", "--epochs", "100", "--no-evaluation", "--optimizer", OPTIMIZER)
    train = ("-m", "stagewright.runtime", str(folder / "stages"), "--task", model.task, *limits)
    ranks = Plan.load(plan).num_ranks
    run(*ranks_of(ranks, *train, "--report", str(folder / "report.json")))
    found: list[dict[str, Any]] = json.loads((folder / "report.json").read_text())["report"][
        "replicas"
    ]
    return found


if __name__ == "__main__":
    main()
