"""What is written for a plan of a text graph: the graph with stages, a picture, conf files, our plan."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as copy_with
from pathlib import Path

import graphviz

from stagewright.cluster import Cluster, DeviceGroup, DeviceType, Link, Links, Server
from stagewright.document import sha256_of, write_atomically
from stagewright.optimizer.borders import borders_of, inputs_of
from stagewright.optimizer.simulation.simulate import simulate
from stagewright.pipedream_conf import save_confs
from stagewright.pipedream_conversion import to_layer_graph
from stagewright.pipedream_graph import TextGraph
from stagewright.plan import Plan, Proof, Replica, ReplicaPrediction, Source, Stage

from .problem import PlannedPipeline

COLOURS = ("lightblue", "palegreen", "khaki", "lightsalmon", "plum", "lightgrey", "wheat", "cyan")


@dataclass(frozen=True)
class Device:
    """One device that a rank stands for."""

    server: str
    device_type: str


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A pipeline with what is needed to write it down."""

    graph: TextGraph
    pipeline: PlannedPipeline
    devices: tuple[Device, ...]
    """By rank, idle ones too."""
    graph_paths: Mapping[str, Path]
    """By device type."""
    inside_bytes_per_s: float
    between_bytes_per_s: float
    """Not used with one server."""
    batch_size: int = 1
    """Samples of the micro-batch that was profiled; 1 where nobody knows."""


def stages_of_nodes(graph: TextGraph, pipeline: PlannedPipeline) -> dict[str, int]:
    """Return each node's stage; inputs are of stage 0, unused results of their source's."""
    nodes = pipeline.cuts.topology.nodes
    found = {
        nodes[layer].name: number
        for number, stage in enumerate(pipeline.stages)
        for layer in pipeline.cuts.layers(stage.first, stage.last)
    }
    for source, target in graph.edges:
        if target not in found and source in found:
            found[target] = found[source]
    return {node.name: found.get(node.name, 0) for node in graph.nodes}


def staged_graph(graph: TextGraph, pipeline: PlannedPipeline) -> TextGraph:
    """Return the graph with each node's stage."""
    stages = stages_of_nodes(graph, pipeline)
    nodes = tuple(copy_with(node, stage=stages[node.name]) for node in graph.nodes)
    return TextGraph(nodes=nodes, edges=graph.edges)


def dot_source(graph: TextGraph) -> str:
    """Return graphviz source of a graph with stages, a colour for each."""
    picture = graphviz.Digraph(node_attr={"shape": "box", "style": "filled"})
    numbers = {node.name: f"layer{number}" for number, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        stage = node.stage or 0
        label = f"{node.name} {node.description[:60]}\nstage {stage}"
        picture.node(
            numbers[node.name], graphviz.escape(label), fillcolor=COLOURS[stage % len(COLOURS)]
        )
    for source, target in graph.edges:
        picture.edge(numbers[source], numbers[target])
    return str(picture.source)


def write_all(planned: Planned, folder: Path) -> tuple[list[Path], list[str]]:
    """Write gpus=N.txt, gpus=N.dot, plan.json and the conf files; return what was written, and notes.

    N is the number of devices, idle ones too, as users of PipeDream know it.
    """
    name = f"gpus={len(planned.devices)}"
    staged = staged_graph(planned.graph, planned.pipeline)
    staged.save(folder / f"{name}.txt")
    write_atomically(folder / f"{name}.dot", dot_source(staged).encode())
    written = [folder / f"{name}.txt", folder / f"{name}.dot"]
    plan = plan_of(planned, folder / "plan.json")
    plan.save(folder / "plan.json")
    written.append(folder / "plan.json")
    written += save_confs(plan, folder)
    notes = [
        "plan.json is made from a text graph, which holds no code: it can be scheduled and replayed, "
        "not generated"
    ]
    if plan.num_ranks < len(planned.devices):
        notes.append("plan.json and the conf files number the devices in use only, in rank order")
    return written, notes


def plan_of(planned: Planned, path: Path) -> Plan:
    """Return our plan of a pipeline, as it would be written to a path.

    Its ranks are the devices in use, in order. predicted_step_ms is our simulator's for 1F1B with four
    micro-batches for each device, over links without latency; the formula's value is in the proof. A text
    graph has no time of the update and no saved bytes: updates are ignored (0), and the peak is parameters
    and outputs, once.
    """
    used = sorted(rank for stage in planned.pipeline.stages for rank in stage.ranks)
    graph = to_layer_graph(planned.graph, planned.devices[used[0]].device_type, planned.batch_size)
    placed = stages_of_nodes(planned.graph, planned.pipeline)
    layers = [
        tuple(layer.name for layer in graph.steps if placed[layer.name] == number)
        for number in range(len(planned.pipeline.stages))
    ]
    plan = Plan(
        task=graph.model.task,
        factory=graph.model.factory,
        structure_sha256=graph.model.structure_sha256,
        dtype=graph.dtype,
        microbatch_size=planned.batch_size,
        num_microbatches=4 * len(used),
        schedule="1f1b",
        stages=_stages(planned, layers, {rank: number for number, rank in enumerate(used)}),
        borders=borders_of(graph, layers, planned.batch_size),
        inputs=inputs_of(graph, planned.batch_size),
        predicted_step_ms=0.0,
        proof=_proof(planned.pipeline),
        sources=tuple(
            Source(
                role=f"graph:{name}",
                path=os.path.relpath(source, path.parent),
                sha256=sha256_of(source),
            )
            for name, source in planned.graph_paths.items()
        ),
    )
    sharing = [(stage,) for stage in range(len(layers))]
    timeline = simulate(plan, _cluster(planned), sharing)
    return plan.replace(predicted_step_ms=timeline.step_ms)


def _proof(pipeline: PlannedPipeline) -> Proof:
    return Proof(
        solver=pipeline.solver,
        objective="seconds per micro-batch in steady state, x 1000",
        value=pipeline.value_s * 1e3,
        lower_bound=pipeline.bound_s * 1e3,
        space=f"{pipeline.space}; updates ignored, peak bytes are parameters and outputs",
    )


def _stages(
    planned: Planned, layers: Sequence[tuple[str, ...]], ranks: Mapping[int, int]
) -> tuple[Stage, ...]:
    graphs = {
        name: {node.name: node for node in TextGraph.load(path).nodes}
        for name, path in planned.graph_paths.items()
    }
    stages = []
    for names, found in zip(layers, planned.pipeline.stages, strict=True):
        replicas = []
        for rank in found.ranks:
            device = planned.devices[rank]
            nodes = [graphs[device.device_type][name] for name in names]
            held = sum(node.parameter_bytes + sum(node.activations) for node in nodes)
            predicted = ReplicaPrediction(
                forward_ms=math.fsum(node.forward_ms for node in nodes),
                backward_ms=math.fsum(node.backward_ms for node in nodes),
                reduce_ms=found.reduce_s * len(found.ranks) * 1e3,
                update_ms=0.0,
                peak_bytes=round(held),
            )
            replicas.append(
                Replica(
                    rank=ranks[rank],
                    server=device.server,
                    device_type=device.device_type,
                    share=1,
                    predicted=predicted,
                )
            )
        stages.append(Stage(layers=names, replicas=tuple(replicas)))
    return tuple(stages)


def _cluster(planned: Planned) -> Cluster:
    """Return the cluster for the simulator; memory plays no part in it."""
    counts: dict[str, dict[str, int]] = {}
    for device in planned.devices:
        types = counts.setdefault(device.server, {})
        types[device.device_type] = types.get(device.device_type, 0) + 1
    return Cluster(
        device_types={
            name: DeviceType(memory_bytes=1, profile=str(path))
            for name, path in planned.graph_paths.items()
        },
        servers=tuple(
            Server(
                name=server,
                devices=tuple(DeviceGroup(type=t, count=c) for t, c in types.items()),
            )
            for server, types in counts.items()
        ),
        links=Links(
            inside_server=Link(bandwidth_bytes_per_s=planned.inside_bytes_per_s, latency_ms=0.0),
            between_servers=Link(bandwidth_bytes_per_s=planned.between_bytes_per_s, latency_ms=0.0),
        ),
    )
