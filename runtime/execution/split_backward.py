"""The backward in two parts: gradients of a stage's inputs now (I), those of its weights later (W).

A stage's autograd graph has nodes on a way from its outputs to its received values (the path), and side
branches that lead to parameters only. I runs the path and keeps, at every node where a side branch leaves it,
the gradient that came in there; W runs each side branch from that gradient. A node that makes both kinds of
gradient (a matrix product, a convolution) runs twice, each time for one of them.

Source: Qi et al., "Zero Bubble Pipeline Parallelism", ICLR 2024, section 2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge


@dataclass
class PendingWeights:
    """What W needs: where side branches leave the path, and the gradients that came in there."""

    branches: list["_Branch"] = field(default_factory=list)

    def run(self) -> None:
        """Add the weights' gradients to the parameters'; once."""
        for branch in self.branches:
            branch.run()
        self.branches.clear()


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
        edges = [GradientEdge(self.node, output) for output, _ in self.incoming]
        gradients = [gradient for _, gradient in self.incoming]
        torch.autograd.backward(edges, gradients, inputs=self.parameters)


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
    path = _path([edge.node for edge in edges], leaves)
    branches = _side_branches([edge.node for edge in edges], path)
    inside: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    for root, edge, gradient in zip(roots, edges, gradients, strict=True):
        if edge.node in path:
            inside.append((root, gradient))
            continue
        incoming = torch.ones_like(root) if gradient is None else gradient
        parameters = _parameters_behind([edge.node])
        branches.append(_Branch(edge.node, parameters, [(edge.output_nr, incoming)]))
    held = [id(p) for branch in branches for p in branch.parameters]
    if len(set(held)) < len(held):
        torch.autograd.backward(roots, gradients)
        return [leaf.grad for leaf in leaves], PendingWeights()
    if not inside:
        return [None] * len(leaves), PendingWeights(branches)
    hooks = [branch.node.register_prehook(_keeper(branch)) for branch in branches]
    try:
        found = torch.autograd.grad(
            [root for root, _ in inside],
            leaves,
            [gradient for _, gradient in inside],
            retain_graph=True,
            allow_unused=True,
        )
    finally:
        for hook in hooks:
            hook.remove()
    return list(found), PendingWeights(branches)


def _keeper(branch: _Branch) -> Callable[[tuple[torch.Tensor | None, ...]], None]:
    def keep(incoming: tuple[torch.Tensor | None, ...]) -> None:
        branch.incoming = [
            (i, gradient) for i, gradient in enumerate(incoming) if gradient is not None
        ]

    return keep


def _path(start: Sequence[Node], leaves: Sequence[torch.Tensor]) -> set[Node]:
    """Return the nodes on a way from the start to a leaf."""
    ends = {get_gradient_edge(leaf).node for leaf in leaves}
    path: set[Node] = set()
    for node in _post_order(start):
        if node in ends or any(after in path for after in _next(node)):
            path.add(node)
    return path


def _side_branches(start: Sequence[Node], path: set[Node]) -> list[_Branch]:
    """Return the branches that leave the path for parameters, in the order of the backward."""
    branches = []
    for node in reversed(_post_order(start)):
        if node in path:
            parameters = _parameters_behind([after for after in _next(node) if after not in path])
            if parameters:
                branches.append(_Branch(node, parameters))
    return branches


def _post_order(start: Sequence[Node]) -> list[Node]:
    """Return all nodes that can be reached, each after all that it leads to; without recursion."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(node, False) for node in start]
    while stack:
        node, finished = stack.pop()
        if finished:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(after, False) for after in _next(node) if after not in seen]
    return order


def _parameters_behind(sides: Sequence[Node]) -> list[torch.Tensor]:
    """Return the leaves of some branches: the tensors that AccumulateGrad nodes add to."""
    return [node.variable for node in _post_order(sides) if hasattr(node, "variable")]


def _next(node: Node) -> list[Node]:
    return [after for after, _ in node.next_functions if after is not None]
