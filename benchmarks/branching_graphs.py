"""How fast `stagewright optimize` plans branching graphs, how good its plans are, and in what memory.

Graphs have the shape of well-known networks (optimizer/pipedream/synthetic_graphs.py); their costs are made
up: 80 GB devices of one type, a layer saves what it returns, an update of 5 ms. Each row is a process of
its own: compiled code is loaded by a small problem first, then the command reads its files, plans and writes.
Links: 25 GB/s in a server, 3.125 GB/s between servers.   python benchmarks/branching_graphs.py [--limit S]
"""

import argparse
import contextlib
import io
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stagewright.cluster import Cluster, DeviceGroup, DeviceType, Link, Links, Server
from stagewright.graph import LayerGraph, WholeStep
from stagewright.optimizer.command import main as optimize
from stagewright.optimizer.pipedream.synthetic_graphs import GRAPHS
from stagewright.pipedream_conversion import to_layer_graph
from stagewright.pipedream_graph import TextGraph, TextNode

CHAIN = "chain of 10000"
CLUSTERS = {"8x2": (2, 8), "4x4": (4, 4), "4": (1, 4), "8": (1, 8)}
"""(servers, devices in each)."""
LIGHT_GIB = 80
TIGHT = [
    ("inception-like", "4", 80, ["straight"]),
    ("inception-like", "4", 8, ["straight"]),
    ("inception-like", "4", 6, []),
    ("inception-like", "8", 6, ["straight"]),
    ("inception-like", "8x2", 6, []),
    ("nasnet-like", "4", 80, ["straight"]),
    ("nasnet-like", "4", 20, []),
]
"""Contracted graphs, light and tight in memory, with time for the bound by constraints."""
NUM_MICROBATCHES = 64


def chain_graph(num_layers: int) -> TextGraph:
    """Return a chain whose layers' times go up and down."""
    nodes = tuple(
        TextNode(
            name=f"node{index}",
            description="Linear()",
            forward_ms=1 + index * 7919 % 13 / 13,
            backward_ms=2 + index * 7919 % 13 / 6.5,
            activation_bytes=1e6 * (1 + index % 5),
            parameter_bytes=1e5,
        )
        for index in range(num_layers)
    )
    names = [node.name for node in nodes]
    return TextGraph(nodes=nodes, edges=tuple(itertools.pairwise(names)))


def layer_graph(name: str) -> LayerGraph:
    """Return a graph with what the planner needs beside the shape."""
    text = chain_graph(10_000) if name == CHAIN else GRAPHS[name]()
    graph = to_layer_graph(text, "gpu", 1)
    layers = tuple(
        layer.replace(costs=tuple(c.replace(saved_bytes=c.output_bytes) for c in layer.costs))
        for layer in graph.layers
    )
    whole = WholeStep(
        batch_size=1, forward_ms=0.0, backward_ms=0.0, update_ms=5.0, update_optimizer="SGD"
    )
    return graph.replace(layers=layers, whole=(whole,))


def write_files(folder: Path, name: str, cluster: str, memory_gib: int = LIGHT_GIB) -> Path:
    """Write a graph and a cluster; return the cluster's file."""
    folder.mkdir()
    layer_graph(name).save(folder / "gpu.json")
    num_servers, count = CLUSTERS[cluster]
    Cluster(
        device_types={"gpu": DeviceType(memory_bytes=memory_gib * 2**30, profile="gpu.json")},
        servers=tuple(
            Server(name=f"s{number}", devices=(DeviceGroup(type="gpu", count=count),))
            for number in range(num_servers)
        ),
        links=Links(
            inside_server=Link(bandwidth_bytes_per_s=25e9, latency_ms=0.01),
            between_servers=Link(bandwidth_bytes_per_s=3.125e9, latency_ms=0.05),
        ),
    ).save(folder / "cluster.json")
    return folder / "cluster.json"


def planned(cluster: Path, limit_s: float, options: list[str]) -> tuple[dict[str, object], float]:
    """Return what the command prints, and its seconds."""
    output = str(cluster.parent / "plan.json")
    arguments = [str(cluster), "-o", output, "--batch-size", str(NUM_MICROBATCHES), "--json"]
    printed = io.StringIO()
    started = time.perf_counter()
    with contextlib.redirect_stdout(printed):
        optimize([*arguments, "--time-limit", str(limit_s), *options])
    seconds = time.perf_counter() - started
    return json.loads(printed.getvalue()), seconds


def one_row(name: str, cluster: str, memory_gib: int, limit_s: float, options: list[str]) -> None:
    """Print one row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        small = write_files(Path(folder) / "small", "resnet50-like", "8x2")
        planned(small, 0.5, options)
        path = write_files(Path(folder) / "row", name, cluster, memory_gib)
        report, seconds = planned(path, limit_s, options)
    space = str(report["space"])
    cuts = space.partition(",")[0].partition("; ")[0]
    stages = report["stages"]
    assert isinstance(stages, list)
    gap = report["gap"] if report["every_cut_gap"] is None else report["every_cut_gap"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"| {name} | {cluster} | {memory_gib} | {' '.join(options) or '-'} | {cuts} | "
        f"{report['objective_value']:.1f} | {gap:.2%} | {len(stages)} | {seconds:.2f} | {peak:.2f} |",
        flush=True,
    )


def main() -> None:
    """Run the benchmark: every row in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=1.0, help="seconds of search")
    parser.add_argument("--tight", action="store_true", help="few devices, and tight memory")
    parser.add_argument("--row", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row is not None:
        name, cluster, gib, *options = args.row
        one_row(name, cluster, int(gib), args.limit, [f"--{option}" for option in options])
        return
    print(
        "| graph | GPUs | GiB | options | cuts | step ms | gap, every cut | stages | s | peak GiB |\n"
        "|---|---|--:|---|---|--:|--:|--:|--:|--:|",
        flush=True,
    )
    rows: list[tuple[str, str, int, list[str]]] = [
        (name, cluster, LIGHT_GIB, options)
        for name in (*GRAPHS, CHAIN)
        for cluster in ("8x2", "4x4")
        for options in ([], ["straight"])
    ]
    rows = TIGHT if args.tight else rows
    for name, cluster, gib, options in rows:
        command = [sys.executable, __file__, "--limit", str(args.limit)]
        subprocess.run([*command, "--row", name, cluster, str(gib), *options], check=True)


if __name__ == "__main__":
    main()
