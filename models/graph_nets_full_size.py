"""The graph networks on generated graphs of the size of Cora, which their papers measure."""

from torch import Tensor, nn

from stagewright.models import graph_nets
from stagewright.models.graph_nets import GraphNet, Graphs, Sizes, graphs_of, library, random_graphs

CORA = Sizes(nodes=2708, edges=10556, features=1433)
NUM_GRAPHS = 16
WIDTH = 256
loss = graph_nets.loss
metric = graph_nets.metric


def build() -> nn.Module:
    """Return a GCN."""
    return GraphNet(library().GCNConv, WIDTH, num_features=CORA.features)


def build_sage() -> nn.Module:
    """Return a GraphSAGE."""
    return GraphNet(library().SAGEConv, WIDTH, num_features=CORA.features)


def example_input(batch_size: int) -> tuple[Tensor, Tensor]:
    """Return features and edges of batch_size random graphs, the same for every call."""
    return random_graphs(batch_size, CORA)


def dataset(split: str) -> Graphs:
    """Return generated graphs, the same for every split but for their numbers."""
    return graphs_of(CORA, NUM_GRAPHS, seed=len(split))
