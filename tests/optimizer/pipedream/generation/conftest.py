"""Text graphs to generate from, and the modules that they describe, written by hand."""

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

COSTS = "forward_compute_time=1.000, backward_compute_time=2.000, activation_size=8.0, parameter_size=4.0"


def graph_text(nodes: Sequence[tuple[str, str, int]], edges: Sequence[tuple[str, str]]) -> str:
    """Return a text graph; nodes are (identifier, description, stage)."""
    lines = []
    for name, description, stage in nodes:
        lines.append(f"{name} -- {description} -- {COSTS} -- stage_id={stage}")
    return "\n".join([*lines, *(f"\t{source} -- {target}" for source, target in edges)]) + "\n"


class Images(nn.Module):
    """What IMAGES describes: branches, an addition, a concatenation, a view by the batch's size."""

    def __init__(self) -> None:
        super().__init__()
        self.node2 = nn.Conv2d(1, 4, kernel_size=(3, 3), padding=(1, 1))
        self.node3 = nn.ReLU(inplace=True)
        self.node4 = nn.Conv2d(4, 4, kernel_size=(1, 1), bias=False)
        self.node5 = nn.BatchNorm2d(4)
        self.node8 = nn.MaxPool2d(kernel_size=2)
        self.node11 = nn.Linear(8 * 4 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.node3(self.node2(x))
        y = self.node5(self.node4(x))
        x = self.node8(torch.cat((x + y, y * x), 1))
        return self.node11(x.view(x.size(0), -1))  # type: ignore[no-any-return]


IMAGE_NODES = [
    ("node1", "Input0"),
    ("node2", "Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))"),
    ("node3", "ReLU(inplace)"),
    ("node4", "Conv2d(4, 4, kernel_size=(1, 1), stride=(1, 1), bias=False)"),
    ("node5", "BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)"),
    ("node6", "Add"),
    ("node12", "Mul"),
    ("node7", "Concat(1)"),
    ("node8", "MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)"),
    ("node9", "Size(0)"),
    ("node10", "View(-1)"),
    ("node11", "Linear(in_features=128, out_features=10, bias=True)"),
]
IMAGE_EDGES = [
    ("node1", "node2"), ("node2", "node3"), ("node3", "node4"), ("node4", "node5"), ("node3", "node6"),
    ("node5", "node6"), ("node5", "node12"), ("node3", "node12"), ("node6", "node7"), ("node12", "node7"),
    ("node7", "node8"), ("node8", "node9"), ("node8", "node10"), ("node9", "node10"), ("node10", "node11"),
]  # fmt: skip


@pytest.fixture
def importable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Path], ModuleType]]:
    """Return a function that imports a written package and forgets it after the test."""
    imported = []

    def load(folder: Path) -> ModuleType:
        monkeypatch.syspath_prepend(str(folder.parent))
        imported.append(folder.name)
        importlib.invalidate_caches()
        return importlib.import_module(folder.name)

    yield load
    for name in list(sys.modules):
        if name.partition(".")[0] in imported:
            del sys.modules[name]
