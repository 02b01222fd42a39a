"""Step time measured by the runtime against the simulator's prediction, for five plans.

Run with: .venv/bin/python benchmarks/predicted_against_measured.py
The fast device type is this machine's CPU (one thread), the slow one the same CPU emulated 2.5 times slower.
Profiles are made in the same run as the steps, since a shared machine drifts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = """\
format = "stagewright.cluster"
version = 1

[device_types.cpu]
memory_bytes = 4_000_000_000
profile = "cpu.json"

[device_types.slow-cpu]
memory_bytes = 4_000_000_000
profile = "slow-cpu.json"

[[servers]]
name = "here"
devices = [{ type = "cpu", count = 2 }, { type = "slow-cpu", count = 2 }]

[links.inside_server]
bandwidth_bytes_per_s = 1.0e9
latency_ms = 0.3
"""
PLANS = [
    # name, options of stagewright optimize, ranks
    ("one process", ("--replicas", "1", "--types", "cpu"), 1),
    ("cpu | cpu", ("--cuts", "features.6", "--replicas", "1,1", "--types", "cpu,cpu"), 2),
    ("cpu | slow", ("--cuts", "features.10", "--replicas", "1,1", "--types", "cpu,slow-cpu"), 2),
    ("slow | cpu, gpipe", ("--cuts", "features.4", "--replicas", "1,1", "--types", "slow-cpu,cpu",
                           "--schedule", "gpipe"), 2),
    ("cpu + slow (2:1)", ("--replicas", "2", "--types", "cpu+slow-cpu"), 2),
]  # fmt: skip


def run(*command: str) -> str:
    """Run a command from the repository's root and return what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="models/digits_cnn.py")
    parser.add_argument("--steps", default="30")
    args = parser.parse_args()
    binaries = Path(sys.executable).parent
    stagewright, torchrun = str(binaries / "stagewright"), str(binaries / "torchrun")
    print(
        "| plan | ranks | predicted ms/step | measured ms/step | measured / predicted | contention |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cluster.toml").write_text(CLUSTER)
        for label, options, ranks in PLANS:
            profile(stagewright, args.task, folder)
            plan, stages = str(folder / "plan.json"), str(folder / "stages")
            optimize = (stagewright, "optimize", str(folder / "cluster.toml"), "-o", plan)
            run(*optimize, "--batch-size", "128", "--microbatch-size", "16", *options)
            run(stagewright, "generate", plan, "-o", stages)
            train = ("-m", "stagewright.runtime", stages, "--task", args.task, "--json")
            limits = ("--epochs", "10", "--max-steps", args.steps, "--no-evaluation")
            printed = run(torchrun, "--nproc-per-node", str(ranks), *train, *limits)
            report = json.loads(printed.splitlines()[-1])["report"]
            predicted, measured = report["predicted_step_ms"], report["measured_step_ms"]
            contention = max(replica["measured_contention"] for replica in report["replicas"])
            print(
                f"| {label} | {ranks} | {predicted:.1f} | {measured:.1f} | "
                f"{measured / predicted:.3f} | x{contention:.2f} |",
                flush=True,
            )


def profile(stagewright: str, task: str, folder: Path) -> None:
    """Profile both device types."""
    command = (stagewright, "profile", task, "-b", "16")
    run(*command, "--device-type", "cpu", "-o", str(folder / "cpu.json"))
    slow = ("--device-type", "slow-cpu", "--emulate-slowdown", "2.5")
    run(*command, *slow, "-o", str(folder / "slow-cpu.json"))


if __name__ == "__main__":
    main()
