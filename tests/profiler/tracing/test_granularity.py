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
