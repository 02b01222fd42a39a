"""What a border of a sparse model costs: bytes sent, and the time to pack and to build maps again.

Run with: .venv/bin/python benchmarks/sparse_borders.py (needs `make minkowski`). For cuts of the models: the
bytes of one micro-batch with each coordinate map once, the same if every sparse tensor brought its
coordinates (as SparsePipe does), the time that packing takes, that of unpacking with the coordinates inserted
and of the kernel maps that the second stage builds again though the first has them, and what a plan predicts
for these two from a profile made in the same run. The rest is measured, one thread, medians over
micro-batches of 8 clouds of 512 points; shares are of the whole step in one process, paired.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stagewright.graph import LayerGraph
from stagewright.optimizer.borders import borders_of, chain_of, spec_of, stage_layers
from stagewright.plan import Border
from stagewright.profiler.measuring.measure import Repeats
from stagewright.profiler.profile import Request, profile
from stagewright.profiler.tracing.trace import TracedModel, trace
from stagewright.runtime.messages.codecs import pack_border, unpack_border
from stagewright.runtime.messages.values import Precision
from stagewright.task import Task, load_task
from stagewright.value import tensors_of

BATCH_SIZE = 8
PRECISION = Precision("float32", "float32")
CUTS = {
    "unet": ("down1.0", "down2.0", "up1.0", "cat", "up0.0", "joined0.0"),
    "resnet": ("blocks.0.conv2", "blocks.2.conv1", "blocks.3.conv2", "blocks.4.conv1"),
    "vgg:small": ("features.3", "features.6", "features.10", "features.13"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(
        f"{'model':9} {'cut before':16} {'sent':>10} {'with all maps':>14} {'pack':>8} "
        f"{'build again':>11} {'predicted':>11} {'share of step':>14}"
    )
    for name, cuts in CUTS.items():
        task = load_task(f"stagewright.models.minkowski.{name}")
        torch.manual_seed(0)
        model = task.build()
        traced = trace(task, model)
        limits = Repeats(repeats=repeats)
        graph = profile(task, Request(device_type="cpu", batch_sizes=(BATCH_SIZE,), limits=limits))
        for cut in cuts:
            place = [layer.name for layer in chain_of(graph)].index(cut)
            stages = stage_layers(graph, (place,))
            (border,) = borders_of(graph, stages, BATCH_SIZE)
            print(row(name, Cut(task, traced, graph, stages, border), repeats), flush=True)


@dataclass(frozen=True)
class Cut:
    """One cut of a model, ready to be measured."""

    task: Task
    traced: TracedModel
    graph: LayerGraph
    stages: tuple[tuple[str, ...], ...]
    border: Border


@dataclass(frozen=True)
class Cost:
    """What one micro-batch costs over a cut."""

    sent_bytes: int
    bytes_with_all_maps: int
    pack_ms: float
    unpack_ms: float
    rebuilding_ms: float
    step_ms: float


def row(name: str, cut: Cut, repeats: int) -> str:
    """Return the table's row of one cut."""
    costs = [cost_of(cut, i) for i in range(repeats + 1)][1:]
    median = statistics.median
    predicted_ms = cut.graph.built_again_ms(cut.stages[1], BATCH_SIZE)
    again_ms = median(c.unpack_ms + c.rebuilding_ms for c in costs)
    share = median((c.pack_ms + c.unpack_ms + c.rebuilding_ms) / c.step_ms for c in costs)
    return (
        f"{name:9} {cut.stages[1][0]:16} {statistics.mean(c.sent_bytes for c in costs) / 1e3:7.1f} kB "
        f"{statistics.mean(c.bytes_with_all_maps for c in costs) / 1e3:11.1f} kB "
        f"{median(c.pack_ms for c in costs):5.2f} ms {again_ms:8.2f} ms {predicted_ms:8.2f} ms "
        f"{share:7.1%} of {median(c.step_ms for c in costs):.1f} ms"
    )


def cost_of(cut: Cut, repeat: int) -> Cost:
    """Measure one micro-batch."""
    data, first = cut.task.call("dataset", "train"), repeat * BATCH_SIZE
    samples = [data[(first + i) % len(data)] for i in range(BATCH_SIZE)]
    points = torch.stack([cloud for cloud, _ in samples])
    target = torch.stack([torch.as_tensor(label) for _, label in samples])
    inputs = {"points": points}

    def step() -> None:
        cut.task.call("loss", cut.traced.model(points), target).backward()

    step_ms, _ = timed(step)
    with torch.no_grad():
        values = dict(run(cut.traced, cut.stages[0], inputs))
        kept = {value.layer: values[value.layer] for value in cut.border.values}
        pack_ms, payload = timed(
            lambda: pack_border(cut.border, kept.__getitem__, BATCH_SIZE, PRECISION)
        )
        unpack_ms, received = timed(
            lambda: dict(unpack_border(cut.border, payload, BATCH_SIZE, {}))
        )
        rivals = [received, kept] if repeat % 2 else [kept, received]
        took_ms = [
            timed(lambda: list(run(cut.traced, cut.stages[1], rival | inputs)))[0]  # noqa: B023
            for rival in rivals
        ]
    there_ms, here_ms = took_ms if repeat % 2 else reversed(took_ms)
    sent = sum(tensor.numel() * tensor.element_size() for tensor in payload.tensors)
    return Cost(
        sent_bytes=sent,
        bytes_with_all_maps=sent + repeated_bytes(cut.border, cut.graph, kept),
        pack_ms=pack_ms,
        unpack_ms=unpack_ms,
        rebuilding_ms=there_ms - here_ms,
        step_ms=step_ms,
    )


def repeated_bytes(border: Border, graph: LayerGraph, values: dict[str, Any]) -> int:
    """Return the bytes of the coordinates that a border leaves out as the receiver has them."""
    left_out = 0
    for value in border.values:
        planned = sum(1 for _ in tensors_of(value.spec))
        if planned < sum(1 for _ in tensors_of(spec_of(graph.by_name[value.layer], BATCH_SIZE))):
            coordinates = values[value.layer].C
            left_out += coordinates.numel() * coordinates.element_size()
    return left_out


def run(
    traced: TracedModel, names: Sequence[str], values: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Run some layers in order and yield their values."""
    known = {traced.nodes[name]: value for name, value in values.items() if name in traced.nodes}
    for name in names:
        node = traced.nodes[name]
        arguments, keywords = torch.fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
        module = node.op == "call_module"
        function: Any = traced.model.get_submodule(str(node.target)) if module else node.target
        known[node] = function(*arguments, **keywords)
        yield name, known[node]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the milliseconds of processor time of a call, and what it returned."""
    start = time.process_time()
    value = call()
    return (time.process_time() - start) * 1e3, value


if __name__ == "__main__":
    main()
