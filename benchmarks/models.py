"""Models at their real size through all four tools; their losses on three ranks against one process.

Run with: make bench-models, or .venv/bin/python benchmarks/models.py [--models VGG16 GCN ...]
Five steps of three micro-batches of one sample are trained over gloo, and again in one process: the original
in a plain loop, with the same samples and random numbers. Where a model draws them in functions, not modules
(attention's dropout), the one process runs the generated code of a single stage. Each model takes minutes;
those in the file of --done are not run again.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from method.clusters import cluster_text
from method.commands import ranks_of, run, stagewright
from peak_memory import MEMORY_BYTES

from stagewright.allocation import keep_freed_memory
from stagewright.graph import LayerGraph, ModuleOperation, unique_parameters
from stagewright.optimizer.borders import chain_of
from stagewright.plan import Plan
from stagewright.runtime.checking.one_process import OneProcess
from stagewright.runtime.training.batches import DataOrder, MicrobatchData
from stagewright.runtime.training.samples import read_samples
from stagewright.runtime.training.settings import Settings
from stagewright.task import load_task

MODELS = {
    "VGG16": "vgg16",
    "ResNet50": "resnet50",
    "AlexNet": "pictures_full_size:build_alexnet",
    "DenseNet121": "pictures_full_size:build_densenet121",
    "Inception-v3-like": "pictures_full_size:build_inception",
    "U-Net": "unet",
    "GNMT-8-like": "gnmt:build_deep",
    "GPT-2 small": "gpt:build_gpt2_small",
    "mixture of experts": "experts:build_large",
    "transformers GPT-2": "transformers_full_size:build_gpt2",
    "transformers BERT": "transformers_full_size:build_bert",
    "transformers Llama": "transformers_full_size:build_llama",
    "transformers ViT": "pictures_full_size:build_vit_base",
    "GCN": "graph_nets_full_size",
    "GraphSAGE": "graph_nets_full_size:build_sage",
}
"""Tasks in stagewright.models."""
SIZE = 1
"""Samples in a micro-batch."""
NUM_STAGES = 3
NUM_MICROBATCHES = 3
NUM_STEPS = 5
RATE = 0.001
SEED = 0
TIMEOUT_S = "900"
"""Longest wait for another rank: this machine may have other work."""
REAL_TIME = ("chrt", "-r", "10")
REPEATS = ("--repeats", "3", "--max-seconds", "20")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--done", type=Path, default=Path("bench_models.json"), metavar="FILE")
    parser.add_argument(
        "--real-time",
        action="store_true",
        help="measure with real-time priority (chrt, root), where other work is running",
    )
    parser.add_argument("--one-process", nargs=2, metavar=("PLAN", "TASK"), help="used by itself")
    args = parser.parse_args()
    if args.one_process:
        print(json.dumps(losses_in_one_process(Path(args.one_process[0]), args.one_process[1])))
        return
    rows = json.loads(args.done.read_text()) if args.done.exists() else {}
    for name in args.models:
        if name in rows:
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = row_of(MODELS[name], Path(folder), REAL_TIME if args.real_time else ())
        args.done.write_text(json.dumps(rows, indent=1))
    print(table({name: rows[name] for name in args.models}))


def row_of(task_name: str, folder: Path, timed: Sequence[str]) -> dict[str, Any]:
    """Take a model through the tools; return its figures, times in ms unless they are named otherwise.

    Args:
        timed: the command that starts what is measured.
    """
    task = f"stagewright.models.{task_name}"
    (folder / "cluster.toml").write_text(
        cluster_text({"here": {"cpu": NUM_STAGES}}, memory_bytes=MEMORY_BYTES)
    )
    started_s = time.perf_counter()
    path = folder / "cpu.json"
    words = ("profile", task, "--device-type", "cpu", "-b", str(SIZE), *REPEATS)
    profile = json.loads(stagewright(*words, "-o", str(path), "--json", under=timed))
    profile_s = time.perf_counter() - started_s
    graph = LayerGraph.load(path)
    plan = plan_of_three_stages(graph, folder)
    run_file = trained(folder, "plan", task, timed)
    report, losses = run_file["report"], run_file["history"]["losses"]
    draws_in_functions = any(
        layer.random and not isinstance(layer.operation, ModuleOperation) for layer in graph.layers
    )
    if draws_in_functions:
        planned(folder, "one", "--replicas", "1")
        expected = trained(folder, "one", task)["history"]["losses"]
    else:
        plan_path = str(folder / "plan.json")
        expected = json.loads(run(str(Path(__file__)), "--one-process", plan_path, task))
    (measured,) = profile["microbatches"]
    return {
        "parameters": sum(p.spec.bytes_at(1) for p in trained_parameters(graph)) // 4,
        "layers": profile["num_layers"],
        "profile_s": profile_s,
        "sum_over_whole": measured["sum_over_whole"],
        "stages": [len(stage.layers) for stage in plan.stages],
        "gap": plan.proof.gap,
        "predicted": report["predicted_step_ms"],
        "measured": report["measured_step_ms"],
        "contention": max(replica["measured_contention"] for replica in report["replicas"]),
        "losses": losses,
        "against": "one stage" if draws_in_functions else "the original",
        "difference": max(
            abs(ours - theirs) / abs(theirs)
            for ours, theirs in zip(losses, expected, strict=True)
        ),
    }  # fmt: skip


def trained_parameters(graph: LayerGraph) -> list[Any]:
    found = unique_parameters(graph, graph.layers).values()
    return [parameter for parameter in found if parameter.spec.requires_grad]


def plan_of_three_stages(graph: LayerGraph, folder: Path) -> Plan:
    """Return the best plan of one device per stage; where that has fewer stages, one with equal work."""
    plan = planned(folder, "plan", "--straight", "--time-limit", "30")
    if len(plan.stages) == NUM_STAGES:
        return plan
    chain = chain_of(graph)
    costs = [layer.cost_at(SIZE) for layer in chain]
    until_ms = list(accumulate(cost.forward_ms + cost.backward_ms for cost in costs))
    cuts = [
        next(i for i, ms in enumerate(until_ms) if ms > until_ms[-1] * stage / NUM_STAGES)
        for stage in range(1, NUM_STAGES)
    ]
    names = ",".join(chain[cut].name for cut in cuts)
    return planned(folder, "plan", "--cuts", names, "--replicas", "1,1,1")


def planned(folder: Path, name: str, *options: str) -> Plan:
    """Write a plan and its stages."""
    path = folder / f"{name}.json"
    sizes = ("--batch-size", str(SIZE * NUM_MICROBATCHES), "--microbatch-size", str(SIZE))
    stagewright("optimize", str(folder / "cluster.toml"), "-o", str(path), *sizes, *options)
    stagewright("generate", str(path), "-o", str(folder / f"{name}_stages"))
    return Plan.load(path)


def trained(folder: Path, name: str, task: str, timed: Sequence[str] = ()) -> dict[str, Any]:
    """Train a plan on its ranks; return the report's file."""
    ranks = Plan.load(folder / f"{name}.json").num_ranks
    train = ("-m", "stagewright.runtime", str(folder / f"{name}_stages"), "--task", task)
    limits = ("--epochs", "100", "--max-steps", str(NUM_STEPS), "--no-evaluation")
    numbers = ("--lr", str(RATE), "--seed", str(SEED), "--timeout", TIMEOUT_S)
    report = folder / f"{name}.report.json"
    run(*ranks_of(ranks, *train, *limits, *numbers, "--report", str(report)), under=timed)
    content: dict[str, Any] = json.loads(report.read_text())
    return content


def losses_in_one_process(plan_path: Path, task_name: str) -> list[float]:
    """Train the original model in a plain loop; return each step's mean loss."""
    keep_freed_memory()
    plan, task = Plan.load(plan_path), load_task(task_name)
    cpu, dtype = torch.device("cpu"), torch.float32
    one = OneProcess(plan, task, SEED, cpu, dtype)
    optimizer = Settings(learning_rate=RATE).make_optimizer(list(one.model.parameters()))
    assert optimizer is not None
    dataset = task.call("dataset", "train")
    order = DataOrder(len(dataset), plan.microbatch_size, NUM_MICROBATCHES, SEED)
    losses = []
    for step in range(NUM_STEPS):
        requests = [order.request(step, m) for m in range(NUM_MICROBATCHES)]
        data = MicrobatchData(partial(read_samples, dataset), requests, plan.inputs, dtype, cpu)
        losses.append(sum(one.backward(step, data).values()))
        optimizer.step()
        optimizer.zero_grad()
    return losses


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return the rows as a table."""
    lines = [
        "| model | parameters | layers | profile s | sum / whole | layers of the stages "
        "| predicted ms/step | measured ms/step | contention | losses, first to last | largest difference "
        "| from |",
        "|---|--:|--:|--:|--:|---|--:|--:|--:|---|--:|---|",
    ]  # fmt: skip
    for name, row in rows.items():
        cells: Sequence[str] = (
            name, f"{row['parameters'] / 1e6:.1f} M", str(row["layers"]),
            f"{row['profile_s']:.0f}", f"{row['sum_over_whole']:.3f}", ", ".join(map(str, row["stages"])),
            f"{row['predicted']:.0f}", f"{row['measured']:.0f}", f"x{row['contention']:.2f}",
            f"{row['losses'][0]:.4f} to {row['losses'][-1]:.4f}", f"{row['difference']:.0e}", row["against"],
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
