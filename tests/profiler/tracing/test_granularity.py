"""What is one layer: leaves, members of lists, or modules whose path matches."""

import pytest
from torch import Tensor, nn

from stagewright.document import InputError
from stagewright.profiler.tracing.trace import Tracing

from .conftest import traced


@pytest.mark.parametrize("method", ["fx", "export"])
def test_coarser_layers_are_members_of_lists_or_modules_whose_path_matches(method: str) -> None:
    def block() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = block()
            self.blocks = nn.ModuleList([block(), block()])

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for part in self.blocks:
                x = x + part(x)
            return x

    def names(granularity: str) -> list[str]:
        how = Tracing(method=method, granularity=granularity)
        return [layer.name for layer in traced(Blocks(), 4, how=how).layers]

    assert len(names("leaf")) == 12
    assert names("blocks.*") == [
        "x",
        "stem.0",
        "stem.1",
        "stem.2",
        "blocks.0",
        "add",
        "blocks.1",
        "add_1",
    ]
    assert names("block") == names("blocks.*")
    with pytest.raises(InputError, match=r"--granularity is 'tail.*', expected leaf, block"):
        names("tail.*")


@pytest.mark.parametrize("method", ["fx", "export"])
def test_a_coarse_layer_takes_and_returns_several_values_in_any_form(method: str) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.dropout = nn.Linear(4, 4), nn.Dropout(0.5)

        def forward(
            self, x: Tensor, pair: tuple[Tensor, Tensor], *, scale: float = 1.0
        ) -> tuple[Tensor, dict[str, Tensor]]:
            inner = self.dropout(self.linear(x + pair[0]))
            return inner * scale, {"left": pair[0] + inner, "right": pair[1]}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block(), Block()])

        def forward(self, x: Tensor) -> Tensor:
            left, right = x * 2, x * 3
            for number in (0, 1, 0):
                x, pair = self.blocks[number](x, (left, right), scale=0.5)
                left, right = pair["left"], pair["right"]
            return x + left + right

    found = traced(Net(), 4, how=Tracing(method=method, granularity="block"))
    names = [layer.name for layer in found.layers]
    assert [name for name in names if name.startswith("blocks")] == [
        "blocks.0",
        "blocks.1",
        "blocks.0@2",
    ]
    assert not any("linear" in name or "dropout" in name for name in names)
    first = next(layer for layer in found.layers if layer.name == "blocks.0")
    assert first.inputs == ("mul", "mul_1") or first.inputs == ("x", "mul", "mul_1")
    assert first.keyword_arguments == {"scale": 0.5}
