"""Builders of small layer graphs and clusters, as fixtures that return functions."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from stagewright.cluster import Cluster, DeviceGroup, DeviceType, Link, Links, Server
from stagewright.graph import (
    AttributeOperation,
    FunctionOperation,
    InputOperation,
    LayerCost,
    LayerGraph,
    LayerNode,
    MapCost,
    ModelIdentity,
    ModuleOperation,
    Operation,
    SharedMap,
    StoredTensor,
    WholeStep,
)
from stagewright.optimizer.load import Inputs
from stagewright.value import LayerRef, PerSample, SequenceArgument, TensorSpec

INSIDE = Link(bandwidth_bytes_per_s=1e6, latency_ms=0.1)
BETWEEN = Link(bandwidth_bytes_per_s=2e5, latency_ms=0.3)

MakeLayer = Callable[..., LayerNode]
MakeGraph = Callable[..., LayerGraph]
MakeInputs = Callable[..., Inputs]
RandomInputs = Callable[..., Inputs]


def _spec(width: int, *, requires_grad: bool = True) -> TensorSpec:
    return TensorSpec(
        shape=(PerSample(per_sample=1), width), dtype="float32", requires_grad=requires_grad
    )


def _layer(
    name: str,
    inputs: Sequence[str] = (),
    *,
    width: int = 10,
    forward_ms: float = 1.0,
    backward_ms: float | None = None,
    parameters: Sequence[tuple[str, int]] = (),
    saved_bytes: int | None = 0,
    working_bytes: int | None = None,
    kind: str = "module",
    batch_sizes: Sequence[int] = (1, 2, 4),
) -> LayerNode:
    """One layer; its times, saved and working bytes hold for every micro-batch size."""
    operations: dict[str, Operation] = {
        "module": ModuleOperation(path=name, type="Custom", constructor=None),
        "function": FunctionOperation(target="operator.add"),
        "input": InputOperation(key=0),
        "attribute": AttributeOperation(path=name),
    }
    stored = tuple(
        StoredTensor(
            name=parameter,
            spec=TensorSpec(shape=(num_bytes // 4,), dtype="float32", requires_grad=True),
        )
        for parameter, num_bytes in parameters
    )
    spec = _spec(width, requires_grad=kind != "input")
    free = kind in ("input", "attribute")
    if backward_ms is None:
        backward_ms = 2 * forward_ms
    return LayerNode(
        name=name,
        operation=operations[kind],
        arguments=tuple(LayerRef(name=i) for i in inputs),
        output=spec,
        parameters=stored,
        parameter_bytes=sum(num_bytes for _, num_bytes in parameters),
        costs=tuple(
            LayerCost(
                batch_size=size,
                forward_ms=0.0 if free else forward_ms,
                backward_ms=0.0 if free else backward_ms,
                output_bytes=spec.bytes_at(size),
                saved_bytes=saved_bytes,
                working_bytes=working_bytes,
            )
            for size in batch_sizes
        ),
    )


def _graph(
    layers: Sequence[LayerNode],
    *,
    device_type: str = "fast",
    outputs: Sequence[str] | None = None,
    tied: tuple[tuple[str, ...], ...] = (),
    update_ms: float | None = 1.0,
    loss_ms: float | None = None,
) -> LayerGraph:
    sizes = tuple(cost.batch_size for cost in layers[0].costs)
    whole = tuple(
        WholeStep(
            batch_size=size,
            forward_ms=1.0,
            backward_ms=2.0,
            update_ms=update_ms,
            update_optimizer="SGD",
        )
        for size in sizes
        if update_ms is not None
    )
    names = [layers[-1].name] if outputs is None else outputs
    references = tuple(LayerRef(name=name) for name in names)
    return LayerGraph(
        model=ModelIdentity(task="model.py", factory="build", structure_sha256="0" * 64),
        device_type=device_type,
        device="a test",
        dtype="float32",
        torch_version="2.13.0",
        batch_sizes=sizes,
        layers=tuple(layers),
        output=references[0]
        if len(references) == 1
        else SequenceArgument(type="tuple", items=references),
        tied=tied,
        loss=tuple(
            LayerCost(
                batch_size=size,
                forward_ms=loss_ms,
                backward_ms=loss_ms,
                output_bytes=4,
                saved_bytes=8,
                working_bytes=30,
            )
            for size in sizes
            if loss_ms is not None
        ),
        whole=whole,
    )


def _with_shared_maps(graph: LayerGraph, seed: int) -> LayerGraph:
    """Let some layers share up to three maps, as sparse models' do; nothing for every third seed."""
    rng = np.random.default_rng([seed, 6])
    costly = [layer for layer in graph.steps if layer.costs[0].forward_ms]
    shared = []
    for _ in range(seed % 3 if len(costly) > 1 else 0):
        places = sorted(rng.choice(len(costly), rng.integers(2, len(costly) + 1), replace=False))
        users = [costly[place] for place in places]
        share = float(rng.uniform(0, 0.5))
        costs = tuple(
            MapCost(batch_size=cost.batch_size, build_ms=share * cost.forward_ms)
            for cost in users[0].costs
        )
        names = tuple(layer.name for layer in users)
        shared.append(SharedMap(kind="kernel", layers=names, costs=costs))
    return graph.replace(shared_maps=tuple(shared))


def _inputs(
    graphs: Sequence[LayerGraph],
    servers: Sequence[Sequence[tuple[str, int]]],
    *,
    memory_bytes: int | dict[str, int] = 10**9,
    inside: Link = INSIDE,
    between: Link = BETWEEN,
) -> Inputs:
    kinds = [graph.device_type for graph in graphs]
    cluster = Cluster(
        device_types={
            kind: DeviceType(
                memory_bytes=memory_bytes if isinstance(memory_bytes, int) else memory_bytes[kind],
                profile=f"{kind}.json",
            )
            for kind in kinds
        },
        servers=tuple(
            Server(
                name=f"s{index}",
                devices=tuple(DeviceGroup(type=kind, count=count) for kind, count in groups),
            )
            for index, groups in enumerate(servers)
        ),
        links=Links(inside_server=inside, between_servers=between),
    )
    return Inputs(
        cluster=cluster,
        cluster_path=Path("cluster.toml"),
        graphs={graph.device_type: graph for graph in graphs},
        graph_paths={kind: Path(f"{kind}.json") for kind in kinds},
    )


def _random_layers(rng: np.random.Generator, num_layers: int, weight_bytes: int) -> list[LayerNode]:
    """A chain with skips, a bare and a tied parameter, and now and then a second model input."""
    layers = [_layer("x", kind="input"), _layer("y", kind="input")]
    layers.append(_layer("bare", kind="attribute", parameters=[("bare", 40)]))
    previous = "x"
    for index in range(num_layers):
        inputs = [previous]
        if index and rng.random() < 0.4:
            inputs.append(f"l{rng.integers(index)}")
        if rng.random() < 0.2:
            inputs.append("y")
        if rng.random() < 0.3:
            inputs.append("bare")
        parameters = [(f"l{index}.weight", int(rng.integers(1, 60)) * weight_bytes)]
        if rng.random() < 0.3:
            parameters.append(("tied.weight", 100))
        previous = f"l{index}"
        layers.append(
            _layer(
                previous,
                list(dict.fromkeys(inputs)),
                width=int(rng.integers(1, 200)),
                forward_ms=float(rng.uniform(0.1, 3)),
                parameters=parameters,
                saved_bytes=int(rng.integers(0, 300)),
                working_bytes=83 * index % 200,
            )
        )
    return layers


def _random_inputs(
    seed: int, num_layers: int, servers: Sequence[Sequence[tuple[str, int]]], memory_bytes: int
) -> Inputs:
    """A random model on clusters of the types "fast" and "slow", whose speeds differ layer by layer."""
    rng = np.random.default_rng(seed)
    layers = _random_layers(rng, num_layers, weight_bytes=4 if seed % 3 else 80)
    outputs = [layers[-1].name] + (["l0"] if rng.random() < 0.3 else [])
    graphs = []
    for kind in dict.fromkeys(kind for groups in servers for kind, _ in groups):
        factors = rng.uniform(1, 3, len(layers)).tolist()
        slower = [
            layer.replace(
                costs=tuple(
                    cost.replace(
                        forward_ms=cost.forward_ms * factor,
                        backward_ms=cost.backward_ms * factor,
                    )
                    for cost in layer.costs
                ),
            )
            for layer, factor in zip(layers, factors, strict=True)
        ]
        loss_ms = 0.5 if seed % 2 else None
        graph = _graph(slower, device_type=kind, outputs=outputs, loss_ms=loss_ms)
        graphs.append(_with_shared_maps(graph, seed))
    return _inputs(graphs, servers, memory_bytes=memory_bytes)


@pytest.fixture(scope="session")
def make_layer() -> MakeLayer:
    return _layer


@pytest.fixture(scope="session")
def make_graph() -> MakeGraph:
    return _graph


@pytest.fixture(scope="session")
def with_shared_maps() -> Callable[[LayerGraph, int], LayerGraph]:
    return _with_shared_maps


@pytest.fixture(scope="session")
def make_inputs() -> MakeInputs:
    return _inputs


@pytest.fixture(scope="session")
def random_inputs() -> RandomInputs:
    return _random_inputs
