"""Maps that layers share: judged by what the engine's own coordinate managers hold on both sides of a cut."""

import re
from typing import Any

import pytest
import torch
from torch import fx

from stagewright.graph import LayerGraph
from stagewright.models.minkowski.engine.installed import why_unusable
from stagewright.optimizer.borders import chain_of
from stagewright.profiler.measuring.measure import Repeats
from stagewright.profiler.profile import Request, profile
from stagewright.profiler.tracing.trace import TracedModel, trace
from stagewright.profiler.tracing.voxels import is_sparse
from stagewright.task import load_task

pytestmark = pytest.mark.skipif(why_unusable() is not None, reason=str(why_unusable()))

BATCH_SIZE = 2
UNET = "stagewright.models.minkowski.unet"


class Stages:
    """The layers of a model run in two stages; the second one has a coordinate manager of its own."""

    def __init__(self, traced: TracedModel, names: list[str]) -> None:
        from stagewright.models.minkowski.voxels import ME

        self.engine = ME
        self.traced = traced
        self.names = names
        self.points = load_task(UNET).call("example_input", BATCH_SIZE)

    def held(self, cut: int) -> list[set[Any]]:
        """Return the maps that each stage's manager holds, as it prints them."""
        known: dict[fx.Node, Any] = {self.traced.nodes["points"]: self.points}
        first = [self._run(name, known) for name in self.names[:cut]]
        received = self.engine.CoordinateManager(D=3)
        keys: dict[str, Any] = {}
        nodes = [self.traced.nodes[name] for name in self.names]
        taken = {other for node in nodes[cut:] for other in node.all_input_nodes}
        for node in nodes[:cut]:
            if node in taken and is_sparse(known[node]):
                stride, name = known[node].coordinate_map_key.get_key()
                at = str((stride, name))
                if at not in keys:
                    keys[at] = received.insert_and_map(known[node].C, stride, name)[0]
                known[node] = self.engine.SparseTensor(
                    known[node].F, coordinate_map_key=keys[at], coordinate_manager=received
                )
        for name in self.names[cut:]:
            self._run(name, known)
        return [printed(first[0].coordinate_manager), printed(received)]

    def _run(self, name: str, known: dict[fx.Node, Any]) -> Any:
        node = self.traced.nodes[name]
        arguments, keywords = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
        is_module = node.op == "call_module"
        function: Any = node.target
        if is_module:
            function = self.traced.model.get_submodule(str(node.target))
        known[node] = function(*arguments, **keywords)
        return known[node]


def printed(manager: Any) -> set[Any]:
    """Return a manager's coordinate maps by stride, kernel maps by both, whatever the way, and their size."""
    text = repr(manager).replace("\b", "")
    coordinates = re.findall(r"\[([\d, ]+)\]:\s+CoordinateMap", text)
    kernels = re.findall(r"\[([\d, ]+)\]->\[([\d, ]+)\]:.*unique maps:(\d+)", text)
    return {*coordinates, *((frozenset(ends), size) for *ends, size in kernels)}


@pytest.fixture(scope="module")
def graph() -> LayerGraph:
    request = Request(device_type="cpu", batch_sizes=(BATCH_SIZE,), limits=Repeats(repeats=2))
    return profile(load_task(UNET), request)


def test_the_maps_that_two_stages_both_build_are_those_with_layers_on_both_sides(
    graph: LayerGraph,
) -> None:
    task = load_task(UNET)
    torch.manual_seed(0)
    names = [layer.name for layer in chain_of(graph)]
    stages = Stages(trace(task, task.build()), names)
    with torch.no_grad():
        for cut in range(1, len(names)):
            before, behind = stages.held(cut)
            sides = [
                {names.index(layer) < cut for layer in shared.layers}
                for shared in graph.shared_maps
            ]
            assert len(before & behind) == sides.count({True, False}), names[cut]


def test_a_way_down_and_the_way_up_share_a_kernel_map_and_times_were_measured(
    graph: LayerGraph,
) -> None:
    kernels = [shared for shared in graph.shared_maps if shared.kind == "kernel"]
    assert [shared.layers for shared in kernels] == [
        ("level0.0", "joined0.0"),
        ("down1.0", "up0.0"),
        ("level1.0", "joined1.0"),
        ("down2.0", "up1.0"),
    ]
    for shared in graph.shared_maps:
        assert shared.build_ms(BATCH_SIZE) > 0 and shared.costs[0].spread_ms is not None
