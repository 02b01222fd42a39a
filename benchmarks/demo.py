"""The main job, whole: profile two device types, plan, generate, train on several ranks, compare.

Run with: make demo. It works in demo_output/ and uses nothing but the stagewright commands, which it prints.
The two device types are this machine's CPU and the same CPU emulated 2.5 times slower.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from stagewright.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
TASK = "models/digits_cnn.py"
CLUSTER = """\
# The demo's cluster: two servers in name; both are this machine. The devices are so small that the model,
# with what training it needs, does not fit on any one of them: it has to be cut.
format = "stagewright.cluster"
version = 1

[device_types.cpu]
memory_bytes = 16_000_000
profile = "cpu.graph.json"

[device_types.slow-cpu]
memory_bytes = 16_000_000
profile = "slow-cpu.graph.json"

[[servers]]
name = "fast"
devices = [{ type = "cpu", count = 1 }]

[[servers]]
name = "slow"
devices = [{ type = "slow-cpu", count = 2 }]

[links]
inside_server = { bandwidth_bytes_per_s = 1.0e9, latency_ms = 0.3 }
between_servers = { bandwidth_bytes_per_s = 1.0e9, latency_ms = 0.3 }
"""


def run(*command: str) -> None:
    """Print a command as a user would type it and run it from the repository's root."""
    shown = [Path(command[0]).name, *command[1:]]
    print(f"\n$ {shlex.join(shown)}", flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if status:
        sys.exit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="demo_output", help="folder for the demo's files")
    parser.add_argument("--epochs", default="4", help="of training")
    args = parser.parse_args()
    folder = Path(args.output)
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    (ROOT / folder / "cluster.toml").write_text(CLUSTER)
    binaries = Path(sys.executable).parent
    stagewright, torchrun = str(binaries / "stagewright"), str(binaries / "torchrun")
    profile = (stagewright, "profile", TASK, "-b", "8", "16")
    run(*profile, "--device-type", "cpu", "-o", f"{folder}/cpu.graph.json")
    slow = ("--device-type", "slow-cpu", "--emulate-slowdown", "2.5")
    run(*profile, *slow, "-o", f"{folder}/slow-cpu.graph.json")
    optimize = (stagewright, "optimize", f"{folder}/cluster.toml", "--batch-size", "128")
    run(*optimize, "-o", f"{folder}/plan.json", "--trace", f"{folder}/predicted.trace.json")
    run(stagewright, "generate", f"{folder}/plan.json", "-o", f"{folder}/stages")
    ranks = Plan.load(ROOT / folder / "plan.json").num_ranks
    options = ("--task", TASK, "--epochs", args.epochs, "--lr", "0.05")
    train = ("-m", "stagewright.runtime", f"{folder}/stages", *options)
    output = ("--output", f"{folder}/weights.safetensors", "--report", f"{folder}/report.json")
    run(torchrun, "--nproc-per-node", str(ranks), *train, *output)
    print("\nThe same training in one process, for comparison:")
    alone = ("--replicas", "1", "--types", "cpu", "--microbatch-size", "16", "--ignore-memory")
    run(*optimize, "-o", f"{folder}/one.json", *alone)
    run(stagewright, "generate", f"{folder}/one.json", "-o", f"{folder}/one_stage")
    one = (f"{folder}/one_stage", *options, "--report", f"{folder}/one_report.json")
    run(stagewright, "train", *one)
    compare(ROOT / folder / "report.json", ROOT / folder / "one_report.json")


def compare(pipeline: Path, one_process: Path) -> None:
    """Print both trainings side by side."""
    first, second = (json.loads(path.read_text()) for path in (pipeline, one_process))
    print("\n                        pipeline   one process   (measured)")
    for ours, theirs in zip(first["history"]["epochs"], second["history"]["epochs"], strict=True):
        for name in ("train_loss", "test_loss", "test_metric"):
            print(f"epoch {ours['epoch'] + 1} {name:12} {ours[name]:13.6f} {theirs[name]:13.6f}")
    pairs = zip(first["history"]["losses"], second["history"]["losses"], strict=True)
    apart = [abs(ours - theirs) / abs(theirs) for ours, theirs in pairs]
    print(
        f"largest relative difference of a step's loss: {max(apart[:20]):.1e} in the first 20 steps,"
    )
    print(f"{max(apart):.1e} in all {len(apart)} (float32; training amplifies rounding)")
    times = [content["report"] for content in (first, second)]
    for name in ("predicted_step_ms", "measured_step_ms"):
        print(f"{name:20} {times[0][name]:13.2f} {times[1][name]:13.2f}")


if __name__ == "__main__":
    main()
