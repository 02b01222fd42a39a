"""One training step, watched: walked layer by layer with a clock at every border, or run in one piece.

The walk is a real step: the layers run in order on one another's outputs, then one backward runs through
all. A layer's forward is the time of its call. A layer's backward is the time from when autograd starts on
it until it starts on the next: autograd runs on a CPU in the reverse order of the forward, so the layers'
backwards follow one another, and a hook on the first operation of each reads the clock. Gradients add into
those of an earlier micro-batch, as in every micro-batch of a step but the first. Caches, memory and the
sums at branches are so as in training, and no time is left out or counted twice; what a walk adds is the
reading of the clock (about 1 us) and the hook (about 2 us) per layer.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from stagewright.profiler.tracing.observe import tensors_in
from stagewright.profiler.tracing.trace import TracedModel

from .clock import Clock

LOSS = -1
"""The loss's place among the layers, which are counted from 0."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch as the model and the loss take it."""

    size: int
    inputs: Mapping[int | str, Any]
    """By position or keyword; positions first."""
    loss: Callable[[Any], Tensor] | None
    """From the model's output; None: the task has no loss, the backward starts from ones."""


@dataclass
class StepTimes:
    """Milliseconds of one walk, by the layer's place in the graph, or LOSS."""

    forward_ms: dict[int, float] = field(default_factory=dict)
    backward_ms: dict[int, float] = field(default_factory=dict)


class Walk:
    """The layers of a model as calls, prepared once."""

    def __init__(self, traced: TracedModel) -> None:
        places = {traced.nodes[layer.name]: i for i, layer in enumerate(traced.layers)}
        self._calls = [
            (node, places.get(node), _callable_of(traced.model, node))
            for node in traced.calls.nodes
            if node.op not in ("placeholder", "output")
        ]
        nodes = list(traced.calls.nodes)
        self._inputs = [node for node in nodes if node.op == "placeholder"]
        self._output = nodes[-1].args[0]
        last_use = {other: node for node in nodes for other in node.all_input_nodes}
        self._dead_after: dict[fx.Node, list[fx.Node]] = {}
        for other, node in last_use.items():
            self._dead_after.setdefault(node, []).append(other)

    def run(self, batch: Batch, clock: Clock, rest: Callable[[], None]) -> StepTimes:
        """Return the times of one forward and one backward; gradients add into the parameters'.

        rest is called between the two.
        """
        times = StepTimes()
        marks: list[tuple[int, Any]] = []
        spans: list[tuple[int, Any, Any]] = []
        owned: set[Any] = set()

        def around(place: int, call: Callable[[], Any]) -> Any:
            start = clock.now()
            value = call()
            spans.append((place, start, clock.now()))
            for function in _new_functions(value, owned):
                function.register_prehook(lambda _: marks.append((place, clock.now())))
            return value

        output = self._forward(batch, around)
        rest()
        start, end = _backward(output, batch, clock, around)
        clock.settle()
        for place, first, second in spans:
            times.forward_ms[place] = clock.between_ms(first, second)
        first_place = marks[0][0] if marks else LOSS
        marks.insert(0, (LOSS if batch.loss else first_place, start))
        for (place, first), (_, second) in zip(marks, [*marks[1:], (LOSS, end)], strict=True):
            elapsed_ms = clock.between_ms(first, second)
            times.backward_ms[place] = times.backward_ms.get(place, 0.0) + elapsed_ms
        return times

    def saved_bytes(self, batch: Batch) -> dict[int, int]:
        """Return what autograd keeps, by the layer's place or LOSS.

        Memory counts once in the model, at the first layer that keeps any of it; parameters and buffers,
        which are there anyway, do not count. So a stage keeps the sum of its layers, and what it receives.
        """
        kept: dict[int, int] = {}
        counted: set[int] = set()
        alive: list[Tensor] = []

        def around(place: int, call: Callable[[], Any]) -> Any:
            kept[place] = 0

            def count(tensor: Tensor) -> Tensor:
                if isinstance(tensor, nn.Parameter) or tensor.layout is not torch.strided:
                    return tensor
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in counted:
                    counted.add(storage.data_ptr())
                    alive.append(tensor.detach())
                    kept[place] += storage.nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                return call()

        for stored in self._stored():
            counted.add(stored.untyped_storage().data_ptr())
        output = self._forward(batch, around)
        if batch.loss is not None:
            loss = batch.loss
            around(LOSS, lambda: loss(output))
        return kept

    def _stored(self) -> Iterator[Tensor]:
        for node, _, call in self._calls:
            if isinstance(call, nn.Module):
                yield from call.parameters()
                yield from call.buffers()
            elif node.op == "get_attr":
                yield call()

    def _forward(self, batch: Batch, around: Callable[[int, Callable[[], Any]], Any]) -> Any:
        """Run all calls, each layer's through `around`; return the model's output."""
        values: dict[fx.Node, Any] = dict(zip(self._inputs, batch.inputs.values(), strict=True))
        for node, place, function in self._calls:
            arguments, keywords = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)

            def call(
                function: Callable[..., Any] = function,
                arguments: Any = arguments,
                keywords: Any = keywords,
            ) -> Any:
                return function(*arguments, **keywords)

            values[node] = call() if place is None else around(place, call)
            for other in self._dead_after.get(node, ()):
                del values[other]
            del arguments, keywords, call
        return fx.node.map_arg(self._output, values.__getitem__)


def run_whole(
    model: nn.Module,
    batch: Batch,
    clock: Clock,
    update: Callable[[], Any],
    rest: Callable[[], None],
) -> tuple[float, float, float]:
    """Return the ms of the model's own forward (with the loss), of its backward and of the update.

    rest is called between forward and backward.
    """
    positional = [value for key, value in batch.inputs.items() if isinstance(key, int)]
    keywords = {key: value for key, value in batch.inputs.items() if isinstance(key, str)}
    start = clock.now()
    output = model(*positional, **keywords)
    loss = output if batch.loss is None else batch.loss(output)
    middle = clock.now()
    rest()
    _start_backward(loss)
    end = clock.now()
    update()
    updated = clock.now()
    clock.settle()
    moments = (start, middle, end, updated)
    forward, backward, change = (clock.between_ms(a, b) for a, b in pairwise(moments))
    return forward, backward, change


def _backward(
    output: Any, batch: Batch, clock: Clock, around: Callable[[int, Callable[[], Any]], Any]
) -> tuple[Any, Any]:
    """Run the loss and the backward; return the moments between which the backward ran."""
    root = output
    if batch.loss is not None:
        loss = batch.loss
        root = around(LOSS, lambda: loss(output))
    start = clock.now()
    _start_backward(root)
    return start, clock.now()


def _start_backward(root: Any) -> None:
    roots = [tensor for tensor in tensors_in(root) if tensor.requires_grad]
    torch.autograd.backward(roots, [torch.ones_like(tensor) for tensor in roots])


def _new_functions(value: Any, owned: set[Any]) -> Iterator[Any]:
    """Yield the autograd functions of a value's tensors that no earlier layer made."""
    for tensor in tensors_in(value):
        if tensor.grad_fn is not None and tensor.grad_fn not in owned:
            owned.add(tensor.grad_fn)
            yield tensor.grad_fn


def _callable_of(model: nn.Module, node: fx.Node) -> Callable[..., Any]:
    """Return the function of a node's arguments that gives its value."""
    target = node.target
    if node.op == "call_module":
        return model.get_submodule(str(target))
    if node.op == "call_function":
        assert callable(target)
        return target
    if node.op == "call_method":
        name = str(target)
        return lambda receiver, *rest, **keywords: getattr(receiver, name)(*rest, **keywords)
    assert node.op == "get_attr", node.op
    path, _, attribute = str(target).rpartition(".")
    owner = model.get_submodule(path)
    return lambda: getattr(owner, attribute)
