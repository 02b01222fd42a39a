"""Repeated identical layers: a model without all copies but the second, which the others cost as much as.

Two calls are copies if they call the same thing (a module of the same class, printed the same, with tensors
of the same shapes), return the same kind of value, and take the same values, or values that are copies by the
same distance. A run of such calls is a repeated block. The first block stays as well as the second, for what
lies before it differs: which of two layers keeps a tensor first, what is still in the cache.

Assumption: time depends on shapes only, not on values; so nothing is left out where sizes depend on the data.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
from torch import fx

from stagewright.document import InputError
from stagewright.graph import LayerNode
from stagewright.profiler.tracing.trace import TracedModel
from stagewright.value import is_ragged

NUM_KEPT = 2
"""Copies of a block that stay."""


class _Run(NamedTuple):
    """`num_blocks` blocks of `period` calls each, from a position on."""

    first: int
    period: int
    num_blocks: int

    @property
    def num_dropped(self) -> int:
        return (self.num_blocks - NUM_KEPT) * self.period


def shortened(traced: TracedModel) -> tuple[TracedModel, dict[str, str]]:
    """Return a model's calls without the third and later copies of blocks, and which layer each copy equals.

    Raises:
        InputError: sizes depend on the data.
    """
    if any(layer.output is not None and is_ragged(layer.output) for layer in traced.layers):
        raise InputError(
            "--reuse-identical: sizes in this model depend on the data, so that identical layers cost "
            "different times; leave the option out"
        )
    nodes = list(traced.calls.nodes)
    layer_of = {traced.nodes[layer.name]: layer for layer in traced.layers}
    keys = {node: _key(traced, node, layer_of.get(node)) for node in nodes}
    stands_for: dict[fx.Node, fx.Node] = {}
    while True:
        run = _longest_run(nodes, keys, stands_for)
        if run is None:
            break
        end = run.first + run.num_blocks * run.period
        for i in range(run.first + NUM_KEPT * run.period, end):
            offset = (i - run.first) % run.period
            stands_for[nodes[i]] = nodes[run.first + (NUM_KEPT - 1) * run.period + offset]
        nodes = [node for node in nodes if node not in stands_for]
    copies = {
        layer.name: layer_of[_kept(node, stands_for)].name
        for node, layer in layer_of.items()
        if node in stands_for
    }
    return _without(traced, nodes, stands_for), copies


def _kept(node: fx.Node, stands_for: dict[fx.Node, fx.Node]) -> fx.Node:
    while node in stands_for:
        node = stands_for[node]
    return node


def _key(traced: TracedModel, node: fx.Node, layer: LayerNode | None) -> Any:
    """Return all that copies have in common besides what they take."""
    if layer is None:
        return node.op, str(node.target)
    what = str(node.target)
    if node.op == "call_module":
        module = traced.model.get_submodule(str(node.target))
        what = f"{type(module).__module__} {module!r}"
        what += str([part.training for part in module.modules()])
    elif node.op == "get_attr":
        what = ""
    elif node.op == "placeholder":
        what = node.name
    stored = [tensor.spec for tensor in (*layer.parameters, *layer.buffers)]
    return node.op, what, layer.random, msgspec.json.encode([layer.output, stored])


def _longest_run(
    nodes: Sequence[fx.Node], keys: dict[fx.Node, Any], stands_for: dict[fx.Node, fx.Node]
) -> _Run | None:
    """Return the run whose shortening drops the most calls; None: none has more than NUM_KEPT blocks."""
    places = {node: i for i, node in enumerate(nodes)}
    best: _Run | None = None
    for period in range(1, len(nodes) // (NUM_KEPT + 1) + 1):
        length = 0
        for i in range(len(nodes) - period + 1):
            is_copy = i + period < len(nodes) and _is_copy(
                nodes[i], nodes[i + period], period, keys, places, stands_for
            )
            if is_copy:
                length += 1
                continue
            run = _Run(i - length, period, length // period + 1)
            length = 0
            if run.num_dropped > (0 if best is None else best.num_dropped):
                best = run
    return best


def _is_copy(
    one: fx.Node,
    other: fx.Node,
    distance: int,
    keys: dict[fx.Node, Any],
    places: dict[fx.Node, int],
    stands_for: dict[fx.Node, fx.Node],
) -> bool:
    if keys[one] != keys[other] or one.op in ("placeholder", "output"):
        return False
    taken, of_other = (
        [_kept(n, stands_for) for n in node.all_input_nodes] for node in (one, other)
    )
    if len(taken) != len(of_other):
        return False
    if any(
        b is not a and places[b] - places[a] != distance
        for a, b in zip(taken, of_other, strict=True)
    ):
        return False
    return _shape_of_call(one) == _shape_of_call(other)


def _shape_of_call(node: fx.Node) -> str:
    """Return a call's arguments with the order of its nodes in place of their names."""
    order = {other: i for i, other in enumerate(node.all_input_nodes)}
    return repr(fx.node.map_arg((node.args, node.kwargs), lambda other: f"node {order[other]}"))


def _without(
    traced: TracedModel, nodes: Sequence[fx.Node], stands_for: dict[fx.Node, fx.Node]
) -> TracedModel:
    calls = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        made[node] = calls.node_copy(node, lambda other: made[_kept(other, stands_for)])
    layers = tuple(layer for layer in traced.layers if traced.nodes[layer.name] in made)
    return replace(
        traced,
        calls=calls,
        nodes={layer.name: made[traced.nodes[layer.name]] for layer in layers},
        layers=layers,
    )
