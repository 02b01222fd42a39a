"""Graph neural networks of the library torch_geometric: which community does each node belong to?

A sample is one random graph in two communities: edges join nodes of one community more
often. A micro-batch is one graph of all its samples, side by side. All graphs have as many edges, so that
sizes follow from the number of samples.
Source: Kipf and Welling, ICLR 2017 (GCN); Hamilton, Ying and Leskovec, NeurIPS 2017 (GraphSAGE).
"""

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from stagewright.document import InputError


@dataclass(frozen=True)
class Sizes:
    """Of one graph."""

    nodes: int
    edges: int
    features: int
    """Of a node."""


SMALL = Sizes(nodes=24, edges=96, features=6)
INSIDE = 0.85
"""Share of the edges that stay inside a community."""
NUM_GRAPHS = {"train": 256, "test": 64}


class GraphNet(nn.Module):
    """Features (batch, nodes, features) and edges (batch, 2, edges) -> scores (batch, nodes, 2)."""

    def __init__(
        self,
        convolution: Any,
        width: int = 16,
        num_layers: int = 3,
        num_features: int = SMALL.features,
    ) -> None:
        super().__init__()
        widths = [num_features] + [width] * num_layers
        self.layers = nn.ModuleList(
            convolution(widths[i], widths[i + 1]) for i in range(num_layers)
        )
        self.head = nn.Linear(width, 2)

    def forward(self, features: Tensor, edges: Tensor) -> Tensor:
        batch, nodes, _ = features.shape
        offsets = torch.arange(batch, device=edges.device).view(batch, 1, 1) * nodes
        joined = (edges + offsets).transpose(0, 1).reshape(2, batch * edges.shape[2])
        x = features.reshape(batch * nodes, features.shape[2])
        for layer in self.layers:
            x = torch.relu(layer(x, joined))
        scores: Tensor = self.head(x).view(batch, nodes, 2)
        return scores


def library() -> Any:
    """Return torch_geometric.nn.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("torch_geometric.nn")
    except ImportError:
        raise InputError("torch_geometric is not installed; pip install torch_geometric") from None


def build() -> nn.Module:
    """Return a GCN."""
    return GraphNet(library().GCNConv)


def build_sage() -> nn.Module:
    """Return a GraphSAGE."""
    return GraphNet(library().SAGEConv)


def example_input(batch_size: int) -> tuple[Tensor, Tensor]:
    """Return features and edges of batch_size random graphs, the same for every call."""
    return random_graphs(batch_size, SMALL)


def random_graphs(batch_size: int, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Return features and edges of random graphs."""
    features, edges, _ = _graphs(batch_size, seed=2, sizes=sizes)
    return features, edges


def graphs_of(sizes: Sizes, count: int, seed: int) -> "Graphs":
    """Return so many graphs with their communities."""
    return Graphs(TensorDataset(*_graphs(count, seed, sizes)))


def dataset(split: str) -> "Graphs":
    """Return the graphs of the split 'train' or 'test'."""
    if split not in NUM_GRAPHS:
        raise InputError(f"split is {split!r}, expected 'train' or 'test'")
    return graphs_of(SMALL, NUM_GRAPHS[split], seed=len(split))


class Graphs(torch.utils.data.Dataset[tuple[tuple[Tensor, Tensor], Tensor]]):
    """((features, edges), community of each node)."""

    def __init__(self, graphs: TensorDataset) -> None:
        self._graphs = graphs

    def __len__(self) -> int:
        return len(self._graphs)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        features, edges, communities = self._graphs[index]
        return (features, edges), communities


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy per node."""
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


def metric(output: Tensor, target: Tensor) -> float:
    """Return the share of nodes that are right."""
    return (output.argmax(dim=-1) == target).float().mean().item()


def _graphs(count: int, seed: int, sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Return features (count, nodes, features), edges (count, 2, edges) and communities (count, nodes)."""
    generator = torch.Generator().manual_seed(seed)
    half = sizes.nodes // 2
    communities = (torch.arange(sizes.nodes) >= half).long().expand(count, -1)
    centres = torch.tensor([-0.5, 0.5])[communities].unsqueeze(-1)
    features = centres + torch.randn(count, sizes.nodes, sizes.features, generator=generator)
    sources = torch.randint(2 * half, (count, sizes.edges), generator=generator)
    stays = torch.rand(count, sizes.edges, generator=generator) < INSIDE
    targets = torch.randint(half, (count, sizes.edges), generator=generator)
    side = torch.where(stays, sources // half, 1 - sources // half)
    return features, torch.stack([sources, targets + side * half], 1), communities
