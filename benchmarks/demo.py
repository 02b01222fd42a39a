"""The main job, whole: profile two device types, plan, generate, train on several ranks, compare.

Run with: make demo. It works in demo_output/ and uses nothing but the stagewright commands, which it prints.
The two device types are this machine's CPU and the same CPU emulated 2.5 times slower.
"""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from stagewright.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
TASK = "models/digits_cnn.py"
CLUSTER = """\
# The demo's cluster: two servers in name; both are this machine.
format = "stagewright.cluster"
version = 1

[device_types.cpu]
memory_bytes = 4_000_000_000
profile = "cpu.graph.json"

[device_types.slow-cpu]
memory_bytes = 4_000_000_000
profile = "slow-cpu.graph.json"

[[servers]]
name = "fast"
devices = [{ type = "cpu", count = 1 }]

[[servers]]
name = "slow"
devices = [{ type = "slow-cpu", count = 2 }]

[links]
inside_server = { bandwidth_bytes_per_s = 2.0e9, latency_ms = 0.1 }
between_servers = { bandwidth_bytes_per_s = 2.0e9, latency_ms = 0.1 }
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
    parser.add_argument("--epochs", default="4")
    args = parser.parse_args()
    folder = Path(args.output)
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    (ROOT / folder / "cluster.toml").write_text(CLUSTER)
    binaries = Path(sys.executable).parent
    stagewright, torchrun = str(binaries / "stagewright"), str(binaries / "torchrun")
    plan, stages = f"{folder}/plan.json", f"{folder}/stages"
    profile = (stagewright, "profile", TASK, "-b", "8", "16")
    run(*profile, "--device-type", "cpu", "-o", f"{folder}/cpu.graph.json")
    slow = ("--device-type", "slow-cpu", "--emulate-slowdown", "2.5")
    run(*profile, *slow, "-o", f"{folder}/slow-cpu.graph.json")
    run(stagewright, "optimize", f"{folder}/cluster.toml", "-o", plan, "--batch-size", "128")
    run(stagewright, "generate", plan, "-o", stages)
    ranks = Plan.load(ROOT / plan).num_ranks
    train = ("-m", "stagewright.runtime", stages, "--task", TASK, "--epochs", args.epochs, "--lr", "0.05")
    output = ("--output", f"{folder}/weights.safetensors", "--report", f"{folder}/report.json")
    run(torchrun, "--nproc-per-node", str(ranks), *train, *output)


if __name__ == "__main__":
    main()
