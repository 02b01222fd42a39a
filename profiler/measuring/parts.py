"""A backward in two parts, as the runtime runs it (zero-bubble): for inputs (I), then for weights (W).

The rules are those of `runtime/execution/split_backward.py`: a layer with matrices makes their gradients in
W, by a call of its own, from the gradient that came in at it; those of vectors alone are made in I.
Source: Qi et al., "Zero Bubble Pipeline Parallelism", ICLR 2024, section 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from stagewright.profiler.tracing.observe import tensors_in

from .clock import Meter


@dataclass
class _Weights:
    """A layer's matrices, and vectors beside them."""

    place: int
    edges: list[GradientEdge]
    """Where gradients come in at the layer."""
    parameters: list[nn.Parameter]


class Parts:
    """What one forward leaves for the two parts; layers are added in its order."""

    def __init__(self) -> None:
        self._first: list[GradientEdge] = []
        self._vectors: list[nn.Parameter] = []
        self._weights: list[_Weights] = []
        self._incoming: list[tuple[_Weights, list[Tensor | None]]] = []

    def add(
        self, place: int, value: Any, is_first: bool, parameters: Sequence[nn.Parameter]
    ) -> None:
        """Add a layer with its value; no gradient goes on from the inputs of a first one, it is W whole."""
        edges = [get_gradient_edge(t) for t in tensors_in(value) if t.grad_fn is not None]
        if is_first:
            self._first += edges
        elif any(parameter.dim() >= 2 for parameter in parameters):
            self._weights.append(_Weights(place, edges, list(parameters)))
        else:
            self._vectors += parameters

    def run_inputs(self, roots: Sequence[Tensor]) -> None:
        """Run I from the model's output or loss on."""
        if not self._first:
            return
        edges = [edge for layer in self._weights for edge in layer.edges]
        found = torch.autograd.grad(
            roots,
            [*self._first, *dict.fromkeys(self._vectors), *edges],  # type: ignore[arg-type] # A mixture is taken, too.
            [torch.ones_like(root) for root in roots],
            retain_graph=True,
            allow_unused=True,
        )
        gradients = iter(found[len(found) - len(edges) :])
        for layer in self._weights:
            self._incoming.append((layer, [next(gradients) for _ in layer.edges]))

    def run_weights(self, meter: Meter[Any]) -> list[tuple[int, Any, Any]]:
        """Run W, in the order of the backward; return each layer's place and moments before and after it."""
        spans = []
        while self._incoming:
            layer, gradients = self._incoming.pop()
            came = [(e, g) for e, g in zip(layer.edges, gradients, strict=True) if g is not None]
            if came:
                start = meter.now()
                torch.autograd.backward(
                    [edge for edge, _ in came],
                    [gradient for _, gradient in came],
                    inputs=layer.parameters,
                )
                spans.append((layer.place, start, meter.now()))
            del gradients, came
        return spans
