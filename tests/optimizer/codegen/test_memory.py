"""In-place layers: what a stage receives, it gives back unchanged."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagewright.optimizer.codegen.layout import flat
from stagewright.optimizer.codegen.memory import clone_expression
from stagewright.value import (
    MappingSpec,
    NumberSpec,
    PerSample,
    SequenceSpec,
    TensorSpec,
    ValueSpec,
)


class Overwriting(nn.Module):
    """Changes values in place: directly, by a view of a view, and an item of a tuple."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = (x * 2).chunk(2, dim=1)
        c = (a + b).view(-1, 2, 2).transpose(1, 2).mul_(3)
        d = x + 1
        d += 1
        return c.flatten(1) + d[:, :4].relu_()


@pytest.mark.parametrize("cut", range(1, 11))
def test_a_stage_leaves_what_it_received_as_it_was(cut: int, workshop: Any) -> None:
    model = nn.Sequential(Overwriting())
    graph = workshop.trace(model, lambda size: torch.randn(size, 8))
    package = workshop.package(graph, (cut,))
    x = torch.randn(3, 8)
    sent = package.Stage0()(x)
    received = {"0_x": x, **dict(zip(package.Stage0.outputs, sent, strict=True))}
    values = [received.get(name, x) for name in package.Stage1.inputs]
    before = [[t.clone() for t in tensors_of(value)] for value in values]
    result = package.Stage1()(*values)
    assert torch.equal(result, model(x))
    for value, copies in zip(values, before, strict=True):
        for tensor, copy in zip(tensors_of(value), copies, strict=True):
            assert torch.equal(tensor, copy)


def tensors_of(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def test_a_clone_is_a_copy_of_every_tensor_in_a_value() -> None:
    tensor = TensorSpec(shape=(PerSample(per_sample=1),), dtype="float32", requires_grad=True)
    spec: ValueSpec = SequenceSpec(
        type="tuple",
        items=(
            MappingSpec(items={'a"': tensor}),
            SequenceSpec(type="list", items=(tensor, NumberSpec(value=1))),
        ),
    )
    value = ({'a"': torch.rand(2)}, [torch.rand(2), 1])
    found = eval(flat(clone_expression("value", spec)), {"value": value})  # noqa: S307
    torch.testing.assert_close(found, value)
    assert type(found) is tuple and type(found[1]) is list
    assert found[0]['a"'] is not value[0]['a"'] and found[1][0] is not value[1][0]
