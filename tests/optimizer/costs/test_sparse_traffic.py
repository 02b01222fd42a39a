"""Bytes of sparse tensors in the solvers' tables are those of the plan's own borders, for every plan."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from stagewright.graph import LayerGraph, LayerNode, ModuleOperation
from stagewright.optimizer.assemble import draft
from stagewright.optimizer.borders import borders_of, stage_layers
from stagewright.optimizer.costs.evaluate import score
from stagewright.optimizer.costs.tables import StageTables
from stagewright.optimizer.load import Inputs
from stagewright.optimizer.problem import Problem
from stagewright.optimizer.solvers import brute_force, exact
from stagewright.value import LayerRef, PerSample, TensorSpec, VoxelsSpec

MakeLayer = Callable[..., LayerNode]
MakeGraph = Callable[..., LayerGraph]
MakeInputs = Callable[..., Inputs]


def rows(num_rows: int, width: int, dtype: str) -> TensorSpec:
    shape = (PerSample(per_sample=num_rows), width)
    return TensorSpec(shape=shape, dtype=dtype, requires_grad=dtype != "int32", ragged=(0,))


@pytest.fixture
def sparse_inputs(
    make_layer: MakeLayer, make_graph: MakeGraph, make_inputs: MakeInputs
) -> Callable[[int], Inputs]:
    """Layers on three coordinate maps; some return to the coordinates of an earlier value."""

    def make(seed: int) -> Inputs:
        rng = np.random.default_rng(seed)
        layers = [make_layer("x", kind="input")]
        first: dict[int, str] = {}
        for index in range(5):
            name, earlier = f"l{index}", [f"l{i}" for i in range(index)]
            number = int(rng.integers(3))
            first.setdefault(number, name)
            inputs = [str(earlier[-1])] if earlier else ["x"]
            inputs += [str(rng.choice(earlier))] if earlier and rng.random() < 0.5 else []
            layer = make_layer(
                name,
                list(dict.fromkeys(inputs)),
                forward_ms=float(rng.uniform(0.1, 3)),
                saved_bytes=int(rng.integers(0, 300)),
                parameters=[(f"{name}.weight", 4 * int(rng.integers(1, 60)))],
            )
            skip = {"coordinates": LayerRef(name=str(rng.choice(earlier)))} if earlier else {}
            features = rows(10 + number, int(rng.integers(1, 9)), "float32")
            layers.append(
                layer.replace(
                    operation=ModuleOperation(path=name, type="MinkowskiX", constructor=None),
                    keyword_arguments=skip if rng.random() < 0.5 else {},
                    output=VoxelsSpec(
                        map=first[number],
                        manager="l0",
                        coordinates=rows(10 + number, 4, "int32"),
                        features=features,
                    ),
                )
            )
        graph = make_graph(layers)
        memory_bytes = 6000 if seed % 3 == 0 else 10**9
        return make_inputs([graph], [[("fast", 2)], [("fast", 1)]], memory_bytes=memory_bytes)

    return make


@pytest.mark.parametrize("seed", range(20))
def test_tables_have_the_bytes_of_every_plan_s_borders(
    sparse_inputs: Callable[[int], Inputs], seed: int
) -> None:
    problem = Problem(inputs=sparse_inputs(seed), microbatch_size=2, num_microbatches=4)
    traffic, graph = problem.traffic, problem.inputs.model
    size = len(problem.chain)
    for cuts in itertools.chain(*(itertools.combinations(range(1, size), n) for n in range(size))):
        borders = borders_of(graph, stage_layers(graph, cuts), 2)
        for stage, at in enumerate(itertools.pairwise((0, *cuts, size))):
            own = [border for border in borders if border.target == stage]
            assert traffic.received[at] == sum(border.forward_bytes(2) for border in own)
            assert traffic.received_gradient[at] == sum(b.backward_bytes(2) for b in own)


@pytest.mark.parametrize("cutting", ["order", "every"])
@pytest.mark.parametrize("seed", range(20))
def test_no_plan_of_a_sparse_model_is_better_than_the_exact_one_and_bytes_agree(
    sparse_inputs: Callable[[int], Inputs], seed: int, cutting: str
) -> None:
    problem = Problem(
        inputs=sparse_inputs(seed),
        microbatch_size=2,
        num_microbatches=4,
        overlap="none" if seed % 5 == 0 else "full",
        cutting="every" if cutting == "every" else "order",
    )
    best, found = brute_force.solve(problem), exact.solve(problem)
    assert (best is None) == (found is None)
    if best is not None and found is not None:
        assert found.value_ms == pytest.approx(best.value_ms, rel=1e-8)
        rescored = score(draft(StageTables(problem), found.stages), problem)
        assert rescored.value_ms == pytest.approx(found.value_ms, rel=1e-9)
        assert not rescored.overflows
