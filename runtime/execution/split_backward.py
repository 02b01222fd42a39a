"""The backward in two parts: gradients of a stage's inputs now (I), those of its weights later (W).

A stage's autograd graph has nodes on a way from its outputs to its received values (the path), and side
branches that lead to parameters only. I runs the path and keeps, at every node where a side branch leaves it,
the gradient that came in there; W runs each side branch from that gradient. A node that makes both kinds of
gradient (a matrix product, a convolution) runs twice, each time for one of them. Where all parameters of a
node are vectors (a normalisation), their gradients cost less than a second run: I makes them, W adds them.

Source: Qi et al., "Zero Bubble Pipeline Parallelism", ICLR 2024, section 2.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

Edge = tuple[Node, int]
"""A node of the graph and the number of one of its forward's outputs."""


@dataclass
class PendingWeights:
    """What W needs: where side branches leave the path, and the gradients that came in there."""

    branches: list["_Branch"] = field(default_factory=list)
    vectors: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Parameters whose gradients I has made, with these."""

    def run(self) -> None:
        """Add the weights' gradients to the parameters'; once."""
        for branch in self.branches:
            branch.run()
        self.branches.clear()
        if self.vectors:
            parameters = [parameter for parameter, _ in self.vectors]
            edges = [get_gradient_edge(parameter) for parameter in parameters]
            torch.autograd.backward(edges, [gradient for _, gradient in self.vectors])
            self.vectors.clear()


@dataclass
class _Branch:
    """The parameters that hang on one node of the path."""

    node: Node
    parameters: list[torch.Tensor]
    incoming: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    """By output of the node's forward: the gradient that came in."""

    def run(self) -> None:
        if not self.incoming:
            return
        product = _linear_product(self)
        if product is not None:
            product.run(self.incoming[0][1])
            return
        edges = [GradientEdge(self.node, output) for output, _ in self.incoming]
        gradients = [gradient for _, gradient in self.incoming]
        torch.autograd.backward(edges, gradients, inputs=self.parameters)


@dataclass
class _LinearProduct:
    """The matrix product of a linear layer whose weight (and bias) are parameters.

    A call of the engine takes about as long as a small product, so W makes this most common kind itself, with
    the engine's own formulas: the gradients are the same bit for bit.
    """

    inputs: torch.Tensor
    """Of the layer, a row for each sample and position."""
    weight: torch.Tensor
    bias: torch.Tensor | None

    @torch.no_grad()
    def run(self, gradient: torch.Tensor) -> None:
        """Add the gradients of the parameters to theirs.

        Args:
            gradient: of the layer's outputs.
        """
        _accumulate(self.weight, gradient.t().mm(self.inputs))
        if self.bias is not None:
            _accumulate(self.bias, gradient.sum(0))


def _accumulate(parameter: torch.Tensor, gradient: torch.Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad += gradient


def _linear_product(branch: _Branch) -> _LinearProduct | None:
    """Return the product that a branch is; None if it is another, or its gradients are watched."""
    if any(p._post_accumulate_grad_hooks or p._backward_hooks for p in branch.parameters):
        return None
    node: Any = branch.node  # Each kind of node has attributes of its own.
    ends = [end for end, _ in node.next_functions]
    if node.name() == "AddmmBackward0" and node._saved_alpha == node._saved_beta == 1:
        bias, weight = getattr(ends[0], "variable", None), _transposed(ends[2])
    elif node.name() == "MmBackward0":
        bias, weight = None, _transposed(ends[1])
    else:
        return None
    own = {id(parameter) for parameter in (bias, weight) if parameter is not None}
    if weight is None or own != {id(parameter) for parameter in branch.parameters}:
        return None
    if bias is not None and bias.dim() != 1:
        return None
    inputs = node._saved_self if len(ends) == 2 else node._saved_mat1
    return _LinearProduct(inputs, weight, bias)


def _transposed(node: Node | None) -> Any:
    """Return the leaf that a node transposes; None if it is another kind of node."""
    if node is None or node.name() != "TBackward0":
        return None
    return getattr(node.next_functions[0][0], "variable", None)


class _Graph:
    """A stage's autograd graph, walked once."""

    def __init__(self, start: Iterable[Node]) -> None:
        self.order: list[Node] = []
        """All nodes that can be reached, each after all that it leads to."""
        self.after: dict[Node, list[Edge]] = {}
        """Where the gradients that a node makes go to."""
        stack: list[tuple[Node, bool]] = [(node, False) for node in start]
        while stack:
            node, finished = stack.pop()
            if finished:
                self.order.append(node)
            elif node not in self.after:
                edges = [
                    (after, number) for after, number in node.next_functions if after is not None
                ]
                self.after[node] = edges
                stack.append((node, True))
                stack += [(after, False) for after, _ in edges if after not in self.after]

    def path_to(self, ends: set[Node]) -> set[Node]:
        """Return the nodes on a way to some."""
        path: set[Node] = set()
        for node in self.order:
            if node in ends or any(after in path for after, _ in self.after[node]):
                path.add(node)
        return path

    def parameters_behind(self, sides: list[Node]) -> list[torch.Tensor]:
        """Return the leaves of some branches: the tensors that AccumulateGrad nodes add to."""
        found: list[torch.Tensor] = []
        seen = set(sides)
        while sides:
            node = sides.pop()
            edges = self.after[node]
            variable = None if edges else getattr(node, "variable", None)
            if variable is not None:
                found.append(variable)
            for after, _ in edges:
                if after not in seen:
                    seen.add(after)
                    sides.append(after)
        return found

    def side_branches(self, path: set[Node]) -> list[_Branch]:
        """Return the branches that leave the path for parameters, in the order of the backward."""
        branches = []
        for node in reversed(self.order):
            if node in path:
                sides = [after for after, _ in self.after[node] if after not in path]
                parameters = self.parameters_behind(sides)
                if parameters:
                    branches.append(_Branch(node, parameters))
        return branches


def backward_of_inputs(
    roots: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor | None],
    leaves: Sequence[torch.Tensor],
) -> tuple[list[torch.Tensor | None], PendingWeights]:
    """Return the gradients of the leaves, and what is left to do for the parameters.

    If a parameter hangs on two nodes of the path (a module used twice), running its branches one by one
    would count it twice, so the whole backward runs now and nothing is left.

    Args:
        roots: what the backward starts at; each needs a gradient.
        gradients: theirs; None for a scalar.
        leaves: the received values that need a gradient.
    """
    edges = [get_gradient_edge(root) for root in roots]
    graph = _Graph(edge.node for edge in edges)
    path = graph.path_to({get_gradient_edge(leaf).node for leaf in leaves})
    branches = graph.side_branches(path)
    inside: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    apart: list[_Branch] = []
    for root, edge, gradient in zip(roots, edges, gradients, strict=True):
        if edge.node in path:
            inside.append((root, gradient))
            continue
        incoming = torch.ones_like(root) if gradient is None else gradient
        parameters = graph.parameters_behind([edge.node])
        apart.append(_Branch(edge.node, parameters, [(edge.output_nr, incoming)]))
    held = [id(p) for branch in (*branches, *apart) for p in branch.parameters]
    if len(set(held)) < len(held):
        torch.autograd.backward(roots, gradients)
        return [leaf.grad for leaf in leaves], PendingWeights()
    if not inside:
        return [None] * len(leaves), PendingWeights(apart)
    found, weights = _run_path(inside, leaves, branches, _outputs(graph, path, edges))
    weights.branches += apart
    return found, weights


def _outputs(graph: _Graph, path: set[Node], roots: Sequence[GradientEdge]) -> dict[Node, set[int]]:
    """Return at which outputs of its forward a gradient comes in, for each node of the path."""
    outputs: dict[Node, set[int]] = {node: set() for node in path}
    for root in roots:
        if root.node in path:
            outputs[root.node].add(root.output_nr)
    for node in path:
        for after, output in graph.after[node]:
            if after in path:
                outputs[after].add(output)
    return outputs


def _run_path(
    roots: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
    leaves: Sequence[torch.Tensor],
    branches: Sequence[_Branch],
    outputs: dict[Node, set[int]],
) -> tuple[list[torch.Tensor | None], PendingWeights]:
    """Run the path; return the leaves' gradients and what the branches are left with."""
    light = [branch for branch in branches if all(p.dim() < 2 for p in branch.parameters)]
    heavy = [branch for branch in branches if any(p.dim() >= 2 for p in branch.parameters)]
    vectors = [parameter for branch in light for parameter in branch.parameters]
    kept = [(branch, output) for branch in heavy for output in sorted(outputs[branch.node])]
    ends: list[torch.Tensor | GradientEdge] = [*leaves, *vectors]
    ends += [GradientEdge(branch.node, output) for branch, output in kept]
    found = torch.autograd.grad(
        [root for root, _ in roots],
        ends,  # type: ignore[arg-type] # A mixture is taken, too.
        [gradient for _, gradient in roots],
        retain_graph=True,
        allow_unused=True,
    )
    of_leaves, rest = found[: len(leaves)], found[len(leaves) :]
    of_vectors, incoming = rest[: len(vectors)], rest[len(vectors) :]
    for (branch, output), gradient in zip(kept, incoming, strict=True):
        if gradient is not None:
            branch.incoming.append((output, gradient))
    made = [
        (vector, gradient)
        for vector, gradient in zip(vectors, of_vectors, strict=True)
        if gradient is not None
    ]
    return list(of_leaves), PendingWeights(heavy, made)
