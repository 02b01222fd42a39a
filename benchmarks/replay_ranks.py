"""Step time of plans for 8 and 16 ranks, replayed, against the simulator's.

Run with: .venv/bin/python benchmarks/replay_ranks.py
Real ranks and real messages over gloo on loopback; computations are slept, as long as the plan predicts. The
device types are this machine's CPU emulated so much slower that every action sleeps 5 ms or longer: that many
ranks can share two cores. The links of the cluster are measured in the same run (stagewright links).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from stagewright.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
TASK = "models/gpt.py:build_deep"
SLOWDOWNS = {"slow": 24.0, "slower": 48.0}
CLUSTER = """\
format = "stagewright.cluster"
version = 1

[device_types.slow]
memory_bytes = 8_000_000_000
profile = "../slow.json"

[device_types.slower]
memory_bytes = 8_000_000_000
profile = "../slower.json"

[[servers]]
name = "here"
devices = [{{ type = "slow", count = {slow} }}, {{ type = "slower", count = {slower} }}]

{links}"""
PLANS = (
    # name, devices of both types, options of stagewright optimize
    ("8 ranks, exact", (5, 3), ()),
    ("8 ranks, a stage each", (5, 3), ("--straight",)),
    ("8 ranks, a stage each, gpipe", (5, 3), ("--straight", "--schedule", "gpipe")),
    ("16 ranks, exact", (10, 6), ()),
    ("16 ranks, at most 8 stages", (10, 6), ("--max-stages", "8")),
    ("16 ranks, a stage each", (10, 6), ("--straight",)),
)
LEAST_ACTION_MS = 5.0


def run(*command: str) -> str:
    """Run a command from the repository's root and return what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", default="10", help="replayed of every plan")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for device_type, slowdown in SLOWDOWNS.items():
            output = ("-o", str(folder / f"{device_type}.json"), "--repeats", "15")
            emulated = ("--device-type", device_type, "--emulate-slowdown", str(slowdown))
            run("stagewright.cli", "profile", TASK, "-b", "2", *emulated, *output)
        links = folder / "links.toml"
        launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        run(*launcher, "-m", "stagewright.profiler.links_command", "-o", str(links))
        print(links.read_text())
        print(
            "| plan | stages | shortest action ms | simulated ms/step | replayed ms/step | ratio |"
        )
        print("|---|--:|--:|--:|--:|--:|")
        for label, counts, options in PLANS:
            plan_path = make_plan(folder, counts, links.read_text(), options)
            print(row(label, plan_path, args.steps), flush=True)
    print(
        "simulated: predicted from emulated profiles; replayed: measured, computing slept; medians"
    )


def make_plan(folder: Path, counts: tuple[int, int], links: str, options: tuple[str, ...]) -> Path:
    """Plan for so many devices of both types; return the plan's file."""
    own = folder / f"{'-'.join(map(str, counts))}{''.join(options)}"
    own.mkdir()
    cluster, plan = own / "cluster.toml", own / "plan.json"
    cluster.write_text(CLUSTER.format(slow=counts[0], slower=counts[1], links=links))
    batch = ("--batch-size", "64", "--microbatch-size", "2", "--time-limit", "30")
    run("stagewright.cli", "optimize", str(cluster), "-o", str(plan), *batch, *options)
    return plan


def row(label: str, plan_path: Path, steps: str) -> str:
    """Replay a plan and return its line of the table."""
    plan = Plan.load(plan_path)
    predictions = [replica.predicted for stage in plan.stages for replica in stage.replicas]
    shortest_ms = min(time for p in predictions for time in (p.forward_ms, p.backward_ms))
    mark = "" if shortest_ms >= LEAST_ACTION_MS else " (too short)"
    printed = run("stagewright.cli", "replay", str(plan_path), "--steps", steps, "--json")
    found = json.loads(printed.splitlines()[-1])
    simulated, replayed = found["simulated_step_ms"], found["measured_step_ms"]
    return (
        f"| {label} ({plan.num_ranks} used) | {len(plan.stages)} | {shortest_ms:.1f}{mark} | {simulated:.1f} "
        f"| {replayed:.1f} | {replayed / simulated:.3f} |"
    )


if __name__ == "__main__":
    main()
