"""The chained stages: the original's state dict in both directions, and one copy of what is shared."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional


class Awkward(nn.Module):
    """Children named as the generated class names its own, shared parts under two names, bare buffers."""

    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        first, last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.stages = nn.ModuleList([first, last])
        self.shared = nn.BatchNorm1d(4)
        self.norm = nn.LayerNorm(4)
        self.alias = self.norm
        self.head = nn.Linear(4, 4, bias=False)
        self.head.weight = last.weight
        self.register_buffer("step", torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.stages[0](x) + self.step)
        x = self.norm(self.shared(self.stages[1](x) * self.step))
        x = self.alias(x)
        return self.head(functional.linear(x, self.stages[0].weight))  # type: ignore[no-any-return, arg-type]


CUTS = (3, 5, 7, 9)


def example_input(size: int) -> Tensor:
    return torch.randn(size, 4, generator=torch.Generator().manual_seed(1))


def test_state_dicts_move_both_ways_by_the_original_s_names(workshop: Any) -> None:
    torch.manual_seed(0)
    original, other = Awkward(), Awkward()
    package = workshop.package(workshop.trace(original, example_input), CUTS)
    full = package.full_model()
    assert str(full.load_state_dict(original.state_dict())) == "<All keys matched successfully>"
    state = full.state_dict()
    assert state.keys() == original.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in original.state_dict().items())
    other.load_state_dict(state)
    assert torch.equal(other(example_input(3)), full(example_input(3)))


def test_a_part_of_another_model_keeps_the_names_too(workshop: Any) -> None:
    original = nn.Sequential(Awkward(), nn.Linear(4, 2))
    package = workshop.package(workshop.trace(original[0], example_input), CUTS)
    rebuilt = nn.Sequential(package.full_model(), nn.Linear(4, 2))
    rebuilt.load_state_dict(original.state_dict())
    assert rebuilt.state_dict().keys() == original.state_dict().keys()


def test_a_missing_and_an_unknown_name_are_reported(workshop: Any) -> None:
    original = Awkward()
    full = workshop.package(workshop.trace(original, example_input), CUTS).full_model()
    state = original.state_dict()
    del state["stages.0.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*stages\.0\.bias"):
        full.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*stranger"):
        full.load_state_dict(original.state_dict() | {"stranger": torch.zeros(1)})


def test_what_several_stages_hold_is_one_thing_and_is_converted_once(workshop: Any) -> None:
    original = Awkward()
    full = workshop.package(workshop.trace(original, example_input), CUTS).full_model()
    assert len(list(full.parameters())) == len(list(original.parameters()))
    full.load_state_dict(original.state_dict())
    full.double()
    reference = copy.deepcopy(original).double()
    x = example_input(3).double()
    for _ in range(2):
        assert torch.equal(full(x), reference(x))
    mean = reference.state_dict()["shared.running_mean"]
    assert torch.equal(full.state_dict()["shared.running_mean"], mean)


def test_a_stage_alone_loads_its_part_of_the_original(workshop: Any) -> None:
    original = Awkward()
    package = workshop.package(workshop.trace(original, example_input), CUTS)
    state = original.state_dict()
    for stage_class in package.STAGES:
        stage = stage_class()
        stage.load_state_dict({name: state[name] for name in stage.state_dict()}, strict=True)
