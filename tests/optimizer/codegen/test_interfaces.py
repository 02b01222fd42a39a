"""Interfaces: what a stage takes is what it uses and does not make; a plan that does not fit is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagewright.document import InputError
from stagewright.optimizer.codegen.interfaces import stage_interfaces
from stagewright.plan import Plan


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.scale = nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.layers[0](x) * self.scale
        b = self.layers[2](self.layers[1](a))
        return a + self.layers[3](b) * self.scale + x, a


def test_each_stage_takes_exactly_what_it_uses_and_does_not_hold(workshop: Any) -> None:
    graph = workshop.trace(Skip(), lambda size: torch.rand(size, 4))
    plan = Plan.load(workshop.plan(graph, (2, 3, 4)))
    stages = stage_interfaces(plan, graph, "plan.json")
    for stage in stages:
        held = {layer.name for layer in stage.layers}
        used = {name for layer in stage.layers for name in layer.inputs}
        used |= set(graph.outputs) if stage is stages[-1] else set()
        assert {layer.name for layer in stage.inputs} == used - held
    assert stages[0].outputs == ("mul",) and stages[-1].outputs == ()
    assert [layer.name for layer in stages[3].inputs] == ["x", "mul", "layers.2"]
    assert "scale" in {layer.name for layer in stages[0].layers}
    assert "scale" in {layer.name for layer in stages[3].layers}


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("structure_sha256", "structure_sha256 is"),
        ("borders", "borders are not those"),
        ("inputs", "inputs are not those"),
        ("stages", "layer 'layers.0' is in no stage"),
    ],
)
def test_a_plan_that_does_not_fit_its_graph_is_refused(
    workshop: Any, field: str, message: str
) -> None:
    graph = workshop.trace(Skip(), lambda size: torch.rand(size, 4))
    plan = Plan.load(workshop.plan(graph, (2, 3)))
    fields = {name: getattr(plan, name) for name in plan.__struct_fields__}
    stage = plan.stages[0]
    without_first = type(stage)(layers=stage.layers[1:], replicas=stage.replicas)
    wrong = {
        "structure_sha256": "1" * 64, "borders": (), "inputs": (),
        "stages": (without_first, *plan.stages[1:]),
    }  # fmt: skip
    with pytest.raises(InputError, match=rf"^plan\.json: .*{message}"):
        stage_interfaces(Plan(**(fields | {field: wrong[field]})), graph, "plan.json")
