"""Small random graphs for the planners of text graphs and for their solvers in optimizer/solvers."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stagewright.pipedream_graph import TextGraph, TextNode

DATA = Path(__file__).parents[4] / "shared" / "data"


def chain_graph(seed: int, num_layers: int) -> TextGraph:
    """Return a random chain behind an input; some layers cost nothing."""
    random = np.random.default_rng(seed)
    nodes = [node("input", 5.0, 0.0, 10.0, description="Input0")]
    for number in range(num_layers):
        forward, backward = random.integers(0, 20, 2)
        output, held = random.integers(0, 50, 2) * 1e6
        nodes.append(node(f"n{number}", float(forward), float(backward), output, held))
    names = [n.name for n in nodes]
    return TextGraph(nodes=tuple(nodes), edges=tuple(itertools.pairwise(names)))


def node(
    name: str,
    forward_ms: float,
    backward_ms: float,
    output: float,
    held: float = 0.0,
    description: str = "Layer()",
) -> TextNode:
    return TextNode(
        name=name,
        description=description,
        forward_ms=forward_ms,
        backward_ms=backward_ms,
        activation_bytes=float(output),
        parameter_bytes=float(held),
    )


def branching_graph(seed: int, num_layers: int) -> TextGraph:
    """Return a random graph in which every layer takes one or two earlier ones."""
    random = np.random.default_rng(seed)
    chain = chain_graph(seed, num_layers)
    names = [n.name for n in chain.nodes]
    edges = []
    for number in range(1, len(names)):
        for source in sorted({int(s) for s in random.integers(0, number, 2)}):
            edges.append((names[source], names[number]))
    return TextGraph(nodes=chain.nodes, edges=tuple(edges))


@pytest.fixture(scope="session")
def random_chain() -> Callable[[int, int], TextGraph]:
    return chain_graph


@pytest.fixture(scope="session")
def random_branching() -> Callable[[int, int], TextGraph]:
    return branching_graph


@pytest.fixture(scope="session")
def text_node() -> Callable[..., TextNode]:
    return node


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """Return a function from a name to a file of the public data, which skips where it is missing."""

    def find(name: str) -> Path:
        path = DATA / name
        if not path.exists():
            pytest.skip(f"public data is missing: {path}")
        return path

    return find
