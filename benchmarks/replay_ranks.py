"""Step time of plans for 8 and 16 ranks, replayed, against the simulator's.

Run with: .venv/bin/python benchmarks/replay_ranks.py
Real ranks and real messages over gloo on loopback; computations are slept, as long as the plan predicts. The
device types are this machine's CPU emulated so much slower that every action sleeps 5 ms or longer: that many
ranks can share two cores. The links of the cluster are measured in the same run (stagewright links).
"""

import argparse
import json
import tempfile
from pathlib import Path

from method.clusters import cluster_text
from method.commands import measure_links, stagewright

from stagewright.plan import Plan

TASK = "models/gpt.py:build_deep"
SLOWDOWNS = {"slow": 24.0, "slower": 48.0}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", default="10", help="replayed of every plan")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for device_type, slowdown in SLOWDOWNS.items():
            output = ("-o", str(folder / f"{device_type}.json"), "--repeats", "15")
            emulated = ("--device-type", device_type, "--emulate-slowdown", str(slowdown))
            stagewright("profile", TASK, "-b", "2", *emulated, *output)
        links = measure_links(folder / "links.toml")
        print(links)
        print(
            "| plan | stages | shortest action ms | simulated ms/step | replayed ms/step | ratio |"
        )
        print("|---|--:|--:|--:|--:|--:|")
        for label, counts, options in PLANS:
            plan_path = make_plan(folder, counts, links, options)
            print(row(label, plan_path, args.steps), flush=True)
    print(
        "simulated: predicted from emulated profiles; replayed: measured, computing slept; medians"
    )


def make_plan(folder: Path, counts: tuple[int, int], links: str, options: tuple[str, ...]) -> Path:
    """Plan for so many devices of both types; return the plan's file."""
    own = folder / f"{'-'.join(map(str, counts))}{''.join(options)}"
    own.mkdir()
    cluster, plan = own / "cluster.toml", own / "plan.json"
    devices = {"here": dict(zip(SLOWDOWNS, counts, strict=True))}
    cluster.write_text(cluster_text(devices, links, profiles=".."))
    batch = ("--batch-size", "64", "--microbatch-size", "2", "--time-limit", "30")
    stagewright("optimize", str(cluster), "-o", str(plan), *batch, *options)
    return plan


def row(label: str, plan_path: Path, steps: str) -> str:
    """Replay a plan and return its line of the table."""
    plan = Plan.load(plan_path)
    predictions = [replica.predicted for stage in plan.stages for replica in stage.replicas]
    shortest_ms = min(time for p in predictions for time in (p.forward_ms, p.backward_ms))
    mark = "" if shortest_ms >= LEAST_ACTION_MS else " (too short)"
    printed = stagewright("replay", str(plan_path), "--steps", steps, "--json")
    found = json.loads(printed.splitlines()[-1])
    simulated, replayed = found["simulated_step_ms"], found["measured_step_ms"]
    return (
        f"| {label} ({plan.num_ranks} used) | {len(plan.stages)} | {shortest_ms:.1f}{mark} | {simulated:.1f} "
        f"| {replayed:.1f} | {replayed / simulated:.3f} |"
    )


if __name__ == "__main__":
    main()
