"""Step time measured by the runtime against the simulator's prediction, for five plans.

Run with: .venv/bin/python benchmarks/predicted_against_measured.py
The fast device type is this machine's CPU (one thread), the slow one the same CPU emulated 2.5 times slower.
Profiles are made in the same run as the steps, since a shared machine drifts.
"""

import argparse
import json
import tempfile
from pathlib import Path

from method.clusters import cluster_text
from method.commands import ranks_of, run, stagewright

PLANS = [
    # name, options of stagewright optimize, ranks
    ("one process", ("--replicas", "1", "--types", "cpu"), 1),
    ("cpu | cpu", ("--cuts", "features.6", "--replicas", "1,1", "--types", "cpu,cpu"), 2),
    ("cpu | slow", ("--cuts", "features.10", "--replicas", "1,1", "--types", "cpu,slow-cpu"), 2),
    ("slow | cpu, gpipe", ("--cuts", "features.4", "--replicas", "1,1", "--types", "slow-cpu,cpu",
                           "--schedule", "gpipe"), 2),
    ("cpu + slow (2:1)", ("--replicas", "2", "--types", "cpu+slow-cpu"), 2),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="models/digits_cnn.py")
    parser.add_argument("--steps", default="30")
    args = parser.parse_args()
    print(
        "| plan | ranks | predicted ms/step | measured ms/step | measured / predicted | contention |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cluster.toml").write_text(cluster_text({"here": {"cpu": 2, "slow-cpu": 2}}))
        for label, options, ranks in PLANS:
            profile(args.task, folder)
            plan, stages = str(folder / "plan.json"), str(folder / "stages")
            optimize = ("optimize", str(folder / "cluster.toml"), "-o", plan)
            stagewright(*optimize, "--batch-size", "128", "--microbatch-size", "16", *options)
            stagewright("generate", plan, "-o", stages)
            train = ("-m", "stagewright.runtime", stages, "--task", args.task, "--json")
            limits = ("--epochs", "10", "--max-steps", args.steps, "--no-evaluation")
            printed = run(*ranks_of(ranks, *train, *limits))
            report = json.loads(printed.splitlines()[-1])["report"]
            predicted, measured = report["predicted_step_ms"], report["measured_step_ms"]
            contention = max(replica["measured_contention"] for replica in report["replicas"])
            print(
                f"| {label} | {ranks} | {predicted:.1f} | {measured:.1f} | "
                f"{measured / predicted:.3f} | x{contention:.2f} |",
                flush=True,
            )


def profile(task: str, folder: Path) -> None:
    """Profile both device types."""
    command = ("profile", task, "-b", "16")
    stagewright(*command, "--device-type", "cpu", "-o", str(folder / "cpu.json"))
    slow = ("--device-type", "slow-cpu", "--emulate-slowdown", "2.5")
    stagewright(*command, *slow, "-o", str(folder / "slow-cpu.json"))


if __name__ == "__main__":
    main()
