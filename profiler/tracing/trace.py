"""From a model to its layers: what each layer is, takes, returns and holds; without what it costs.

Assumptions, each checked: control flow does not depend on the values of tensors; every size is fixed or
proportional to the number of samples; what changes between training and evaluation is inside modules.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from torch import fx, nn

from stagewright.document import InputError
from stagewright.graph import (
    AttributeOperation,
    FunctionOperation,
    InputOperation,
    LayerNode,
    MethodOperation,
    ModuleOperation,
    Operation,
)
from stagewright.task import Task
from stagewright.value import Argument, LayerRef, references_of

from .describe import Undescribable, argument_of, function_name, value_spec
from .inputs import inputs_of
from .observe import Observation, observe, tensors_in
from .rebuild import constructor_of
from .stored import Stored, stored_at, stored_in_module, tied_names
from .symbolic import place_of_node, trace_calls

TRACED_BATCH_SIZE = 2
"""Sizes are observed at this many samples and at one more; at one sample BatchNorm may refuse to train."""


@dataclass(frozen=True, kw_only=True)
class TracedModel:
    """A model and its layers."""

    model: nn.Module
    calls: fx.Graph
    """Every call of the model's forward, also those that are no layers, such as x.size(1)."""
    nodes: Mapping[str, fx.Node]
    """From each layer's name to its call."""
    layers: tuple[LayerNode, ...]
    """In the order of the calls, with no costs."""
    output: Argument
    tied: tuple[tuple[str, ...], ...]

    @property
    def structure_sha256(self) -> str:
        """Hash of all that the profiles of one model on different devices have in common."""
        content = msgspec.json.encode([self.layers, self.output, self.tied])
        return hashlib.sha256(content).hexdigest()


def trace(task: Task, model: nn.Module, batch_size: int = TRACED_BATCH_SIZE) -> TracedModel:
    """Return the layers of a task's model, which it runs at batch_size and at batch_size + 1 samples.

    Raises:
        InputError: the model cannot be traced or run, a size depends on the number of samples in another
            way than in proportion, or a tensor is neither parameter nor buffer; with the user's line.
    """
    if not model.training:
        raise InputError(
            f"task {task.name}: {task.factory} returns a model in eval mode; "
            "return it as it trains (parts of it may be in eval mode)"
        )
    sizes = (batch_size, batch_size + 1)
    examples = [inputs_of(task, size, model) for size in sizes]
    calls = trace_calls(model, examples[0])
    _demand_registered_tensors(model, calls)
    _demand_same_in_evaluation(model, calls, examples[0])
    first, second = (observe(model, calls, example) for example in examples)
    builder = _Builder(model, calls, tuple(examples[0]), (first, second), sizes)
    return builder.build()


def _demand_same_in_evaluation(
    model: nn.Module, calls: fx.Graph, inputs: Mapping[int | str, Any]
) -> None:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        evaluation = trace_calls(model, inputs)
    finally:
        for module, training in modes:
            module.training = training
    pairs = zip(list(calls.nodes), list(evaluation.nodes), strict=False)
    for node, other in pairs:
        if (node.op, node.target, str(node.args), str(node.kwargs)) != (
            other.op, other.target, str(other.args), str(other.kwargs)
        ):  # fmt: skip
            raise InputError(
                f"{place_of_node(node)}: layer {node.name!r} is called differently in training and in "
                "evaluation; use a module that knows its mode (nn.Dropout instead of functional.dropout)"
            )


def _demand_registered_tensors(model: nn.Module, calls: fx.Graph) -> None:
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    known |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    for node in calls.nodes:
        if node.op == "get_attr" and str(node.target) not in known:
            raise InputError(
                f"{place_of_node(node)}: a tensor that is neither input, parameter nor buffer is used "
                f"({str(node.target)!r}); register it as a buffer (self.register_buffer)"
            )


class _Builder:
    """Walks the calls once and makes the layers."""

    def __init__(
        self,
        model: nn.Module,
        calls: fx.Graph,
        input_keys: tuple[int | str, ...],
        observations: tuple[Mapping[fx.Node, Observation], Mapping[fx.Node, Observation]],
        batch_sizes: tuple[int, int],
    ) -> None:
        self.model = model
        self.calls = calls
        self.input_keys = list(input_keys)
        self.observations = observations
        self.batch_sizes = batch_sizes
        self.names = layer_names(calls)
        self.standing: dict[fx.Node, Argument] = {}
        """What stands for a node's value: the layer that holds it now, or a literal."""

    def build(self) -> TracedModel:
        layers: list[LayerNode] = []
        nodes: dict[str, fx.Node] = {}
        output: Argument = None
        for node in self.calls.nodes:
            try:
                if node.op == "output":
                    output = argument_of(node.args[0], self._resolve)
                elif self._is_constant(node):
                    value = self.observations[0][node].value
                    self.standing[node] = argument_of(value, self._resolve)
                else:
                    layers.append(self._layer(node))
                    nodes[layers[-1].name] = node
            except Undescribable as error:
                name = self.names.get(node, "output")
                raise InputError(f"{place_of_node(node)}: layer {name!r}: {error}") from None
        kept = _without_unused(layers, output)
        return TracedModel(
            model=self.model,
            calls=self.calls,
            nodes={layer.name: nodes[layer.name] for layer in kept},
            layers=kept,
            output=output,
            tied=tied_names(self.model),
        )

    def _resolve(self, node: fx.Node) -> Argument:
        return self.standing[node]

    def _is_constant(self, node: fx.Node) -> bool:
        """Whether a call gives the same Python value at both micro-batch sizes."""
        if node.op not in ("call_function", "call_method"):
            return False
        first, second = (observed[node].value for observed in self.observations)
        has_tensors = any(True for _ in tensors_in([first, second]))
        return not has_tensors and type(first) is type(second) and bool(first == second)

    def _layer(self, node: fx.Node) -> LayerNode:
        first, second = (observed[node] for observed in self.observations)
        operation = self._operation(node)
        stored = Stored()
        if isinstance(operation, ModuleOperation):
            stored = stored_in_module(self.model, operation.path)
        elif isinstance(operation, AttributeOperation):
            stored = stored_at(self.model, operation.path)
        arguments = () if node.op == "placeholder" else node.args
        layer = LayerNode(
            name=self.names[node],
            operation=operation,
            arguments=tuple(argument_of(item, self._resolve) for item in arguments),
            keyword_arguments={
                key: argument_of(item, self._resolve) for key, item in node.kwargs.items()
            },
            output=value_spec(first.value, second.value, self.batch_sizes),
            parameters=stored.parameters,
            buffers=stored.buffers,
            parameter_bytes=stored.parameter_bytes,
            buffer_bytes=stored.buffer_bytes,
            random=first.random,
            overwrites=self._overwritten(node, first),
            costs=(),
        )
        reference = LayerRef(name=layer.name)
        for other, argument in self.standing.items():
            if layer.overwrites is not None and argument == LayerRef(name=layer.overwrites):
                self.standing[other] = reference
        self.standing[node] = reference
        return layer

    def _operation(self, node: fx.Node) -> Operation:
        if node.op == "placeholder":
            return InputOperation(key=self.input_keys.pop(0))
        if node.op == "get_attr":
            return AttributeOperation(path=str(node.target))
        if node.op == "call_method":
            return MethodOperation(name=str(node.target))
        if node.op == "call_function":
            assert callable(node.target)
            return FunctionOperation(target=function_name(node.target))
        module = self.model.get_submodule(str(node.target))
        return ModuleOperation(
            path=str(node.target),
            type=f"{type(module).__module__}.{type(module).__qualname__}",
            constructor=constructor_of(module),
            training=module.training,
        )

    def _overwritten(self, node: fx.Node, observation: Observation) -> str | None:
        """Return the layer whose value a call changes in place.

        Raises:
            Undescribable: the memory that it changes belongs to several values that are still needed, or
                to a parameter or buffer, or the call returns another tensor than the one it changed.
        """
        changed = {
            name
            for other in observation.overwritten
            for name in references_of(self.standing[other])
        }
        if not changed:
            return None
        taken = {n for other in node.all_input_nodes for n in references_of(self.standing[other])}
        stored = {n.op for n in observation.overwritten} & {"get_attr"}
        if len(changed) > 1 or not changed <= taken or stored:
            raise Undescribable(
                f"it changes the memory of {sorted(changed)} in place, which other layers need or the model "
                "keeps; write it out of place"
            )
        if not observation.returns_overwritten and observation.overwritten_is_used_later:
            raise Undescribable(
                f"it changes the value of {sorted(changed)} in place and returns another tensor; "
                "use the returned tensor only, or write it out of place"
            )
        return changed.pop()


def layer_names(calls: fx.Graph) -> dict[fx.Node, str]:
    """Return a unique name for each call: the path of its module or tensor, or the name that fx gave.

    The second call of the same module has "@2" behind the path.
    """
    paths = {str(node.target) for node in calls.nodes if node.op in ("call_module", "get_attr")}
    times: Counter[str] = Counter()
    names: dict[fx.Node, str] = {}
    for node in calls.nodes:
        path = str(node.target) if str(node.target) in paths else ""
        if node.op == "output":
            continue
        if node.op in ("call_module", "get_attr"):
            times[path] += 1
            names[node] = path if times[path] == 1 else f"{path}@{times[path]}"
        else:
            times[node.name] += 1
            is_free = node.name not in paths and times[node.name] == 1
            names[node] = node.name if is_free else f"{node.name}@{times[node.name] + 1}"
    return names


def _without_unused(layers: list[LayerNode], output: Argument) -> tuple[LayerNode, ...]:
    """Return the layers without functions and methods that have no effect and whose value nothing takes."""
    needed = set(references_of(output))
    kept: list[LayerNode] = []
    for layer in reversed(layers):
        has_effect = layer.random or layer.overwrites is not None
        is_kept = isinstance(layer.operation, InputOperation | ModuleOperation)
        if is_kept or has_effect or layer.name in needed:
            kept.append(layer)
            needed.update(layer.inputs)
    return tuple(reversed(kept))
