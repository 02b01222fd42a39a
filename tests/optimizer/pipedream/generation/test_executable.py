"""Text graphs of our own sparse models become stages that compute what the models compute."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from stagewright.graph import LayerCost, LayerGraph, ModelIdentity, ModuleOperation
from stagewright.models.minkowski.engine.installed import why_unusable
from stagewright.optimizer.pipedream.generation.write import Request, write_model
from stagewright.pipedream_conversion import from_layer_graph
from stagewright.profiler.tracing.trace import trace
from stagewright.task import Task, load_task

pytestmark = pytest.mark.skipif(why_unusable() is not None, reason=str(why_unusable()))


def graph_of(task: Task, model: torch.nn.Module) -> LayerGraph:
    """Return the layer graph of a model with costs of one."""
    traced = trace(task, model)
    one = LayerCost(batch_size=4, forward_ms=1, backward_ms=1, output_bytes=1)
    return LayerGraph(
        model=ModelIdentity(task="", factory="", structure_sha256=traced.structure_sha256),
        device_type="cpu",
        device="not measured",
        dtype="float32",
        torch_version=str(torch.__version__),
        batch_sizes=(4,),
        layers=tuple(layer.replace(costs=(one,)) for layer in traced.layers),
        output=traced.output,
    )


@pytest.mark.parametrize(
    ("name", "num_stages"), [("vgg:small", 2), ("vgg:small", 4), ("unet", 3), ("resnet", 3)]
)
def test_stages_of_a_sparse_models_text_graph_compute_the_model(
    tmp_path: Path, importable: Callable[[Path], ModuleType], name: str, num_stages: int
) -> None:
    torch.set_num_threads(1)
    task = load_task(f"stagewright.models.minkowski.{name}")
    torch.manual_seed(0)
    model = task.build().eval()
    graph = graph_of(task, task.build())
    stages = {
        layer.name: number * num_stages // len(graph.steps)
        for number, layer in enumerate(graph.steps)
    }
    (tmp_path / "gpus=4.txt").write_text(str(from_layer_graph(graph, 4, stages)))
    written = write_model(
        Request(
            graph_path=tmp_path / "gpus=4.txt",
            model_name="Partitioned",
            arch="sparse",
            folder=tmp_path / "written",
        )
    )
    assert len(written.stages) == num_stages
    full = importable(tmp_path / "written").full_model().eval()
    paths = {
        f"node{number}": layer.operation.path
        for number, layer in enumerate(graph.layers, 1)
        if isinstance(layer.operation, ModuleOperation)
    }
    state = model.state_dict()
    full.load_state_dict(
        {key: state[f"{paths[(n := key.partition('.'))[0]]}.{n[2]}"] for key in full.state_dict()}
    )
    points = task.call("example_input", 4)
    expected, found = model(points), full(points)
    assert torch.equal(found, expected)
    expected.square().sum().backward()
    found.square().sum().backward()
    gradients = {n.split(".", 2)[2]: p.grad for n, p in full.named_parameters()}
    by_path = {
        f"{paths[n.partition('.')[0]]}.{n.partition('.')[2]}": g for n, g in gradients.items()
    }
    for key, parameter in model.named_parameters():
        gradient = by_path[key]
        assert parameter.grad is not None and gradient is not None
        assert torch.equal(gradient, parameter.grad)
