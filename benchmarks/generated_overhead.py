"""Time of a training step of generated stages, chained in one process, over that of the original model.

python benchmarks/generated_overhead.py                # a CPU, one thread
python benchmarks/generated_overhead.py --device cuda:0

Measured: both models have the same weights and input and take turns in one run, so that drift of the machine
meets both; the figure is the median of the ratios of neighbouring steps, with its quartiles.
"""

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

from stagewright.cli import run
from stagewright.document import sha256_of
from stagewright.graph import LayerGraph
from stagewright.optimizer.borders import borders_of, chain_of, inputs_of, stage_layers
from stagewright.optimizer.codegen.package import generate
from stagewright.plan import Plan, Proof, Replica, ReplicaPrediction, Source, Stage
from stagewright.profiler.measuring.measure import Repeats
from stagewright.profiler.profile import Request, profile
from stagewright.task import Task, load_task

CASES = {"digits_cnn": 16, "resnet": 16, "gpt": 8, "vgg16": 2}
"""Samples in a micro-batch, by model."""
CASES_ON_GPU = {"digits_cnn": 256, "resnet": 256, "gpt": 64, "vgg16": 32}
NUM_STAGES = 4
MIN_REPEATS = 5
NOTHING = ReplicaPrediction(
    forward_ms=0.0, backward_ms=0.0, reduce_ms=0.0, update_ms=0.0, peak_bytes=0
)


def even_plan(graph: LayerGraph, graph_path: Path, batch_size: int) -> Plan:
    """Return a plan of NUM_STAGES stages with as many layers each; its predictions are left at 0."""
    length = len(chain_of(graph))
    names = stage_layers(graph, [length * s // NUM_STAGES for s in range(1, NUM_STAGES)])
    replicas = [
        Replica(rank=rank, server="here", device_type="here", share=1, predicted=NOTHING)
        for rank in range(NUM_STAGES)
    ]
    return Plan(
        task=graph.model.task,
        factory=graph.model.factory,
        structure_sha256=graph.model.structure_sha256,
        dtype=graph.dtype,
        microbatch_size=batch_size,
        num_microbatches=NUM_STAGES,
        schedule="1f1b",
        stages=tuple(Stage(layers=n, replicas=(r,)) for n, r in zip(names, replicas, strict=True)),
        borders=borders_of(graph, names, batch_size),
        inputs=inputs_of(graph, batch_size),
        predicted_step_ms=0.0,
        proof=Proof(
            solver="even", objective="step_ms", value=0.0, lower_bound=0.0, space="the even split"
        ),
        sources=(Source(role="graph:here", path=graph_path.name, sha256=sha256_of(graph_path)),),
    )


def generated(task: Task, original: nn.Module, batch_size: int) -> nn.Module:
    """Return the generated model of a task, with the original's weights."""
    request = Request(
        device_type="here",
        batch_sizes=(batch_size,),
        device="cpu",
        limits=Repeats(repeats=1, max_seconds=30.0),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graph = profile(task, request)
        graph.save(folder / "graph.json")
        even_plan(graph, folder / "graph.json", batch_size).save(folder / "plan.json")
        package_name = f"generated_{task.name.rpartition('.')[2]}"
        generate(folder / "plan.json", folder / package_name)
        spec = importlib.util.spec_from_file_location(
            package_name,
            folder / package_name / "__init__.py",
            submodule_search_locations=[str(folder / package_name)],
        )
        assert spec is not None and spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules[package_name] = package
        spec.loader.exec_module(package)
    model: nn.Module = package.full_model(task.build())
    model.load_state_dict(original.state_dict())
    return model


def step_ms(model: nn.Module, inputs: Tensor) -> float:
    """Return the time of one forward and backward."""
    for parameter in model.parameters():
        parameter.grad = None
    synchronize(inputs)
    start = time.perf_counter()
    model(inputs).sum().backward()
    synchronize(inputs)
    return (time.perf_counter() - start) * 1e3


def synchronize(inputs: Tensor) -> None:
    if inputs.is_cuda:
        torch.cuda.synchronize(inputs.device)


def row_of(
    name: str, batch_size: int, device: str, repeats: int, max_seconds: float
) -> dict[str, Any]:
    """Return one model's figures; times in ms."""
    task = load_task(f"stagewright.models.{name}")
    original = task.build()
    full = generated(task, original, batch_size).to(device)
    original.to(device)
    inputs = task.function("example_input")(batch_size).to(device)
    for _ in range(3):
        step_ms(original, inputs)
        step_ms(full, inputs)
    pairs: list[list[float]] = []
    end = time.monotonic() + max_seconds
    for turn in range(repeats):
        if turn >= MIN_REPEATS and time.monotonic() > end:
            break
        models = (original, full) if turn % 2 == 0 else (full, original)
        times = [step_ms(model, inputs) for model in models]
        pairs.append(times if turn % 2 == 0 else times[::-1])
    ratios = [mine / theirs for theirs, mine in pairs]
    low, _, high = quantiles(ratios, n=4)
    return {
        "model": name,
        "batch_size": batch_size,
        "original_ms": median(theirs for theirs, _ in pairs),
        "generated_ms": median(mine for _, mine in pairs),
        "ratio": median(ratios),
        "low": low,
        "high": high,
        "repeats": len(pairs),
    }


HEAD = """\
| model | micro-batch | original ms | generated ms | ratio | quartiles | repeats |
|---|--:|--:|--:|--:|--:|--:|"""


def line_of(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    return (
        f"| {row['model']} | {row['batch_size']} | {row['original_ms']:.2f} | "
        f"{row['generated_ms']:.2f} | **{row['ratio']:.3f}** | "
        f"{row['low']:.3f} to {row['high']:.3f} | {row['repeats']} |"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=150)
    parser.add_argument("--max-seconds", type=float, default=40.0, help="per model")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    cases = CASES if args.device == "cpu" else CASES_ON_GPU
    print(HEAD)
    for name, batch_size in cases.items():
        row = row_of(name, batch_size, args.device, args.repeats, args.max_seconds)
        print(line_of(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run("generated_overhead", main, None))
