"""The main job, whole: profile two device types, plan, generate, train on several ranks, compare.

Run with: make demo. It works in demo_output/ and uses nothing but the stagewright commands, which it prints.
The device types are this machine's CPU (fast) and the same CPU emulated 2.5 times slower (slow).
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagewright.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
TASK = "models/digits_cnn.py"
EXPECTED_ACCURACY = 0.97
BATCH = ("--batch-size", "128")
CLUSTER = """\
# The demo's cluster: a server with one fast device, a server with two slow ones; both are this machine.
# The devices are so small that the model, with what training it needs, does not fit on any one of them.
format = "stagewright.cluster"
version = 1

[device_types.fast]
memory_bytes = 22_000_000
profile = "fast.graph.json"

[device_types.slow]
memory_bytes = 22_000_000
profile = "slow.graph.json"

[[servers]]
name = "server0"
devices = [{ type = "fast", count = 1 }]

[[servers]]
name = "server1"
devices = [{ type = "slow", count = 2 }]

[links]
inside_server = { bandwidth_bytes_per_s = 1.0e9, latency_ms = 0.3 }
between_servers = { bandwidth_bytes_per_s = 1.0e9, latency_ms = 0.3 }
"""


@dataclass(frozen=True)
class Rival:
    """A way to train without the planner, run for comparison."""

    name: str
    folder: str
    options: tuple[str, ...]
    """Of stagewright optimize: the stages are given."""


SIZE = ("--microbatch-size", "16", "--ignore-memory")
ONE_PROCESS = Rival("one process (fast)", "one", ("--replicas", "1", "--types", "fast", *SIZE))
RIVALS = (
    Rival(
        "even split of the layers",
        "even",
        ("--cuts", "features.6,features.12", "--types", "fast,slow,slow", *SIZE),
    ),
    Rival(
        "data parallelism, equal shares",
        "parallel",
        ("--replicas", "3", "--types", "fast+slow+slow", "--equal-shares", *SIZE),
    ),
)


class Demo:
    """Runs the commands in one folder."""

    def __init__(self, folder: Path, epochs: str) -> None:
        self.folder = folder
        self.epochs = epochs
        binaries = Path(sys.executable).parent
        self.stagewright, self.torchrun = str(binaries / "stagewright"), str(binaries / "torchrun")

    def run(self, *command: str, quiet: bool = False) -> None:
        """Print a command as a user would type it and run it from the repository's root."""
        print(f"\n$ {shlex.join([Path(command[0]).name, *command[1:]])}", flush=True)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        output = subprocess.PIPE if quiet else None
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, check=False)
        if done.returncode:
            sys.exit(done.returncode)

    def profile(self, device_type: str, *options: str) -> None:
        output = ("--device-type", device_type, "-o", f"{self.folder}/{device_type}.graph.json")
        self.run(self.stagewright, "profile", TASK, "-b", "8", "16", *output, *options)

    def plan(self, name: str, *options: str, quiet: bool = False) -> None:
        """Plan and generate."""
        plan = f"{self.folder}/{name}.plan.json"
        cluster = f"{self.folder}/cluster.toml"
        self.run(self.stagewright, "optimize", cluster, "-o", plan, *BATCH, *options, quiet=quiet)
        picture = ("--dot", f"{self.folder}/{name}.cut.dot")
        stages = f"{self.folder}/{name}_stages"
        self.run(self.stagewright, "generate", plan, "-o", stages, *picture, quiet=quiet)

    def train(self, name: str, *options: str, quiet: bool = False) -> dict[str, Any]:
        """Train a generated plan on its ranks and return the report."""
        ranks = Plan.load(ROOT / self.folder / f"{name}.plan.json").num_ranks
        report = self.folder / f"{name}.report.json"
        stages = f"{self.folder}/{name}_stages"
        train = ("-m", "stagewright.runtime", stages, "--task", TASK, "--lr", "0.02")
        launch = (self.torchrun, "--nproc-per-node", str(ranks))
        self.run(*launch, *train, "--report", str(report), *options, quiet=quiet)
        content: dict[str, Any] = json.loads((ROOT / report).read_text())
        return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="demo_output", help="folder for the demo's files")
    parser.add_argument("--epochs", default="4", help="of training")
    args = parser.parse_args()
    demo = Demo(Path(args.output), args.epochs)
    (ROOT / demo.folder).mkdir(parents=True, exist_ok=True)
    (ROOT / demo.folder / "cluster.toml").write_text(CLUSTER)
    epochs = ("--epochs", args.epochs)
    demo.profile("fast")
    demo.profile("slow", "--emulate-slowdown", "2.5")
    demo.plan("best", "--trace", f"{demo.folder}/best.trace.json")
    best = demo.train("best", *epochs, "--output", f"{demo.folder}/weights.safetensors")
    print("\nThe same training in one process:")
    demo.plan(ONE_PROCESS.folder, *ONE_PROCESS.options, quiet=True)
    one = demo.train(ONE_PROCESS.folder, *epochs, quiet=True)
    print("\nOther ways to use the same three devices, whatever memory they need:")
    limits = ("--epochs", "2", "--max-steps", "16", "--no-evaluation")
    others = []
    for rival in RIVALS:
        demo.plan(rival.folder, *rival.options, quiet=True)
        others.append((rival.name, demo.train(rival.folder, *limits, quiet=True)))
    print_losses(best, one)
    print_times([("the plan", best), (ONE_PROCESS.name, one), *others])
    accuracy = best["history"]["epochs"][-1]["test_metric"]
    print(f"\nheld-out accuracy {accuracy:.4f}, expected at least {EXPECTED_ACCURACY}")
    print(f"every file is in {demo.folder}/, the cut graph's picture in best.cut.dot (graphviz)")
    if accuracy < EXPECTED_ACCURACY:
        sys.exit("demo: the accuracy is too low")


def print_losses(pipeline: dict[str, Any], one: dict[str, Any]) -> None:
    """Print both trainings' losses side by side."""
    print("\n(measured)              pipeline   one process")
    pairs = zip(pipeline["history"]["epochs"], one["history"]["epochs"], strict=True)
    for ours, theirs in pairs:
        for name, shown in (("train_loss", "train loss"), ("test_metric", "accuracy")):
            print(f"epoch {ours['epoch'] + 1} {shown:12}{ours[name]:12.6f}{theirs[name]:14.6f}")
    steps = zip(pipeline["history"]["losses"], one["history"]["losses"], strict=True)
    apart = [abs(ours - theirs) / abs(theirs) for ours, theirs in steps]
    print(
        f"largest relative difference of a step's loss: {max(apart[:10]):.0e} in the first 10 steps;"
    )
    print(f"training amplifies float32 rounding: {max(apart):.0e} in all {len(apart)}")


def print_times(trainings: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Print every training's step time beside the plan's."""
    plan_ms = trainings[0][1]["report"]["measured_step_ms"]
    print(
        "\nstep time                        predicted   measured   measured/predicted   plan's speed-up"
    )
    for name, training in trainings:
        report = training["report"]
        predicted, measured = report["predicted_step_ms"], report["measured_step_ms"]
        print(
            f"{name:30} {predicted:8.1f} ms {measured:7.1f} ms {measured / predicted:19.3f} "
            f"{measured / plan_ms:16.2f}x"
        )
    print("speed-ups are measured step times over the plan's; slow devices are emulated")


if __name__ == "__main__":
    main()
