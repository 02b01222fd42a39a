"""Small random models whose layers branch, and all of their cuts by looking at every set of layers."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from stagewright.graph import LayerGraph, LayerNode
from stagewright.optimizer.borders import chain_of
from stagewright.optimizer.branching.cuts import GraphCuts
from stagewright.optimizer.load import Inputs
from stagewright.optimizer.problem import Problem

BranchingInputs = Callable[..., Inputs]
EveryCutProblem = Callable[[Problem], Problem]


def every_subset_cut(graph: LayerGraph) -> GraphCuts:
    """Return all cuts of a small graph, layer by layer."""
    chain = chain_of(graph)
    position = {layer.name: index for index, layer in enumerate(chain)}
    edges = [
        (position[s], t) for t, layer in enumerate(chain) for s in layer.inputs if s in position
    ]
    rows = [
        row
        for row in itertools.product((False, True), repeat=len(chain))
        if all(row[s] or not row[t] for s, t in edges)
    ]
    inside = np.array(sorted(rows, key=lambda row: (sum(row), row)))
    return GraphCuts(
        order=np.arange(len(chain)),
        sizes=inside.sum(axis=1),
        inside=inside,
        spine=np.arange(0),
        is_thin=False,
        is_complete=True,
        description="every cut",
    )


@pytest.fixture(scope="session")
def with_every_subset() -> EveryCutProblem:
    def make(problem: Problem) -> Problem:
        copy = replace(problem)
        copy.__dict__["cuts"] = every_subset_cut(problem.inputs.model)
        return copy

    return make


@pytest.fixture(scope="session")
def branching_inputs(
    make_layer: Callable[..., LayerNode],
    make_graph: Callable[..., LayerGraph],
    with_shared_maps: Callable[[LayerGraph, int], LayerGraph],
    make_inputs: Callable[..., Inputs],
) -> BranchingInputs:
    """Each layer takes one or two earlier ones; some are free; now and then a bare or tied parameter."""

    def make(
        seed: int, num_layers: int, servers: Sequence[Sequence[tuple[str, int]]], memory_bytes: int
    ) -> Inputs:
        rng = np.random.default_rng(seed)
        layers = [make_layer("x", kind="input")]
        layers.append(make_layer("bare", kind="attribute", parameters=[("bare", 40)]))
        for index in range(num_layers):
            earlier = [f"l{i}" for i in range(index)]
            count = min(index, 1 + int(rng.random() < 0.4))
            inputs = [str(n) for n in rng.choice(earlier, count, replace=False)] if count else ["x"]
            inputs += ["bare"] if rng.random() < 0.15 else []
            is_free = rng.random() < 0.3
            parameters = [] if is_free else [(f"l{index}.weight", 40 * int(rng.integers(1, 60)))]
            if rng.random() < 0.15:
                parameters.append(("tied.weight", 100))
            layers.append(
                make_layer(
                    f"l{index}",
                    inputs,
                    width=int(rng.integers(1, 40)),
                    forward_ms=0.0 if is_free else float(rng.uniform(0.1, 3)),
                    parameters=parameters,
                    saved_bytes=0 if is_free else int(rng.integers(0, 300)),
                    working_bytes=0 if is_free else 83 * index % 200,
                )
            )
        graphs = []
        for kind in dict.fromkeys(kind for groups in servers for kind, _ in groups):
            factors = rng.uniform(1, 3, len(layers)).tolist()
            slower = [
                layer.replace(
                    costs=tuple(
                        c.replace(forward_ms=c.forward_ms * f, backward_ms=c.backward_ms * f)
                        for c in layer.costs
                    )
                )
                for layer, f in zip(layers, factors, strict=True)
            ]
            loss_ms = 0.5 if seed % 2 else None
            graph = make_graph(slower, device_type=kind, loss_ms=loss_ms)
            graphs.append(with_shared_maps(graph, seed))
        return make_inputs(graphs, servers, memory_bytes=memory_bytes)

    return make
