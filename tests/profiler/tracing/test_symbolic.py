"""Tracing with torch.fx leaves the user's model as it was."""

import pytest
import torch
from torch import Tensor, nn

from stagewright.document import InputError
from stagewright.profiler.tracing.trace import Tracing

from .conftest import traced


@pytest.mark.parametrize("can_be_traced", [True, False])
def test_what_forward_stores_in_its_modules_is_no_proxy_afterwards(can_be_traced: bool) -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("mean", torch.zeros(4), persistent=False)
            self.last: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.new = self.linear(x)
            return self.last if can_be_traced or self.last.sum() > 0 else x

    model = Remembering()
    try:
        traced(model, 4, how=Tracing(method="fx"))
    except InputError:
        assert not can_be_traced
    assert type(model.last) in (type(None), Tensor)
    assert not isinstance(vars(model).get("new"), torch.fx.Proxy)
    assert type(model.mean) is Tensor
