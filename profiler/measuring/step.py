"""One training step, watched: walked layer by layer with a clock at every border, or run in one piece.

The walk is a real step: the layers run in order on one another's outputs, then one backward runs through
all. A layer's forward is the time of its call. A layer's backward is the time from when autograd starts on
it until it starts on the next: autograd runs on a CPU in the reverse order of the forward, so the layers'
backwards follow one another, and a hook on the first operation of each reads the clock. Gradients add into
those of an earlier micro-batch, as in every micro-batch of a step but the first. Caches, memory and the
sums at branches are so as in training, and no time is left out or counted twice; what a walk adds is the
reading of the clock and the hook per layer (about 1 us each), which calibration takes off again.

A backward's two parts are measured in a second walk, as the runtime runs them (zero-bubble): one backward
makes the gradients of the first layers' values and of vectors, keeping what came in at each layer that holds
matrices, so autograd leaves out what belongs to these; then each such layer's is made by a call of its own.
Source of the two parts: Qi et al., "Zero Bubble Pipeline Parallelism", ICLR 2024, section 2.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Generic

import torch
from torch import Tensor, fx, nn

from stagewright.profiler.tracing.inputs import called
from stagewright.profiler.tracing.observe import tensors_in
from stagewright.profiler.tracing.trace import TracedModel

from .clock import Amount_co, Clock, Meter
from .parts import Parts

LOSS = -1
"""The loss's place among the layers, which are counted from 0."""


@dataclass(frozen=True)
class Autocast:
    """The precision that forward and loss compute in, as the runtime's stages do; the backward follows."""

    device_type: str
    dtype: torch.dtype | None
    """None: everything in the dtype of its inputs."""

    def context(self) -> AbstractContextManager[Any]:
        """Return the context of one forward; it casts each parameter once."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device_type, self.dtype)


PLAIN = Autocast("cpu", None)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch as the model and the loss take it."""

    size: int
    inputs: Mapping[int | str, Any]
    """By position or keyword; positions first."""
    loss: Callable[[Any], Tensor] | None
    """From the model's output; None: the task has no loss, the backward starts from ones."""
    precision: Autocast = PLAIN


Call = Callable[[], Any]
Around = Callable[[int, Call, bool], Any]
"""Makes the call of the layer at a place; is told whether no gradient goes on from its inputs."""


@dataclass
class Readings(Generic[Amount_co]):
    """What a meter read in one walk, by the layer's place in the graph, or LOSS."""

    forward: dict[int, Amount_co] = field(default_factory=dict)
    backward: dict[int, Amount_co] = field(default_factory=dict)
    weights: dict[int, Amount_co] = field(default_factory=dict)
    """Of a backward in two parts: the part for the layer's matrices, where it is a call of its own."""
    hooks: dict[int, int] = field(default_factory=dict)
    """How many hooks read the meter in the layer's backward."""


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
        self._of_parameters: set[fx.Node] = set()
        """Nodes whose values are made from parameters alone, which no earlier layer passes on."""
        for node in nodes:
            taken = node.all_input_nodes
            if node.op == "get_attr" or (taken and self._of_parameters.issuperset(taken)):
                self._of_parameters.add(node)
        self.takes_parameters = {
            places[node]
            for node in nodes
            if node in places and self._of_parameters.intersection((node, *node.all_input_nodes))
        }
        """Layers whose value is made from parameters alone, or that take such a value."""
        uses = Counter(id(p) for p in self._stored() if isinstance(p, nn.Parameter))
        self._trained = {
            place: [p for p in call.parameters() if p.requires_grad]
            for _, place, call in self._calls
            if place is not None
            and isinstance(call, nn.Module)
            and not list(call.children())
            and all(uses[id(p)] == 1 for p in call.parameters())
        }
        """The parameters of layers that are one module, and that no other layer holds, by place."""

    def run(
        self,
        batch: Batch,
        meter: Meter[Amount_co],
        rest: Callable[[], None] = lambda: None,
        in_parts: bool = False,
    ) -> Readings[Amount_co]:
        """Return what one forward and one backward take; gradients add into the parameters'.

        Args:
            batch: one micro-batch.
            meter: a clock, or counts something.
            rest: is called between forward and backward.
            in_parts: the backward makes the gradients of the layers' inputs, none if no layer is on a way
                from another layer with parameters to the output; the weights' are read apart.

        Raises:
            RuntimeError: something in the model does not allow in_parts (re-entrant checkpointing).
        """
        readings: Readings[Amount_co] = Readings()
        marks: list[tuple[int, Any]] = []
        spans: list[tuple[int, Any, Any]] = []
        owned: set[Any] = set()
        parts = Parts() if in_parts else None

        def around(place: int, call: Call, is_first: bool) -> Any:
            start = meter.now()
            value = call()
            spans.append((place, start, meter.now()))
            for function in _new_functions(value, owned):
                function.register_prehook(lambda _: marks.append((place, meter.now())))
            if parts is not None:
                parts.add(place, value, is_first, self._trained.get(place, ()))
            return value

        with batch.precision.context():
            output = self._forward(batch, around)
        rest()
        start, end = _backward(output, batch, meter, around, parts)
        num_marks = len(marks)
        of_weights = [] if parts is None else parts.run_weights(meter)
        del marks[num_marks:]  # Of layers that ran again for their weights.
        meter.settle()
        readings.weights.update({place: meter.between(*span) for place, *span in of_weights})
        for place, first, second in spans:
            readings.forward[place] = meter.between(first, second)
        readings.hooks.update(Counter(place for place, _ in marks))
        first_place = marks[0][0] if marks else LOSS
        marks.insert(0, (LOSS if batch.loss else first_place, start))
        sums: dict[int, Any] = {}
        for (place, first), (_, second) in zip(marks, [*marks[1:], (LOSS, end)], strict=True):
            amount: Any = meter.between(first, second)
            sums[place] = sums[place] + amount if place in sums else amount
        readings.backward.update(sums)
        return readings

    def saved_bytes(
        self,
        batch: Batch,
        see: Callable[[int, Any], None] = lambda place, value: None,
        given: Sequence[Tensor] = (),
    ) -> dict[int, int]:
        """Return what autograd keeps, by the layer's place or LOSS.

        Memory counts once in the model, at the first layer that keeps any of it; parameters and buffers,
        which are there anyway, do not count. So a stage keeps the sum of its layers, and what it receives.

        Args:
            batch: one micro-batch.
            see: is shown each layer's value, with its place.
            given: tensors that do not count either.
        """
        kept: dict[int, int] = {}
        counted: set[int] = set()
        alive: list[Tensor] = []

        def around(place: int, call: Call, is_first: bool) -> Any:
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
                value = call()
            see(place, value)
            return value

        for stored in (*self._stored(), *given):
            counted.add(stored.untyped_storage().data_ptr())
        with batch.precision.context():
            output = self._forward(batch, around)
            if batch.loss is not None:
                loss = batch.loss
                around(LOSS, lambda: loss(output), False)
        return kept

    def _stored(self) -> Iterator[Tensor]:
        for node, _, call in self._calls:
            if isinstance(call, nn.Module):
                yield from call.parameters()
                yield from call.buffers()
            elif node.op == "get_attr":
                yield call()

    def _forward(self, batch: Batch, around: Around) -> Any:
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

            activations = (n for n in node.all_input_nodes if n not in self._of_parameters)
            is_first = node not in self._of_parameters and not any(
                tensor.requires_grad for n in activations for tensor in tensors_in(values[n])
            )
            values[node] = call() if place is None else around(place, call, is_first)
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
    start = clock.now()
    with batch.precision.context():
        output = called(model, batch.inputs)
        loss = output if batch.loss is None else batch.loss(output)
    middle = clock.now()
    rest()
    _start_backward(loss)
    end = clock.now()
    update()
    updated = clock.now()
    clock.settle()
    moments = (start, middle, end, updated)
    forward, backward, change = (clock.between(a, b) for a, b in pairwise(moments))
    return forward, backward, change


def _backward(
    output: Any,
    batch: Batch,
    meter: Meter[Any],
    around: Around,
    parts: Parts | None,
) -> tuple[Any, Any]:
    """Run the loss and the backward, or the part of it for the inputs; return when it began and ended."""
    root = output
    if batch.loss is not None:
        loss = batch.loss
        with batch.precision.context():
            root = around(LOSS, lambda: loss(output), False)
    start = meter.now()
    if parts is None:
        _start_backward(root)
    else:
        parts.run_inputs([tensor for tensor in tensors_in(root) if tensor.requires_grad])
    return start, meter.now()


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
