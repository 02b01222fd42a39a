"""From a model to its layers: what each layer is, takes, returns and holds; without what it costs.

Assumptions, each checked: control flow does not depend on the values of tensors; what changes between
training and evaluation is inside modules. A size that is neither fixed nor proportional to the number of
samples is marked ragged: it may depend on the data. Some of these show only if the example input differs from
call to call.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
from stagewright.value import (
    Argument,
    LayerRef,
    MappingArgument,
    NumberSpec,
    SequenceArgument,
    ValueSpec,
    is_ragged,
    references_of,
    without_estimates,
)

from .describe import Undescribable, argument_of, function_name, value_spec
from .exported import export_calls
from .granularity import IsLayer, layer_rule
from .inputs import copied, inputs_of
from .modes import Call, by_mode, evaluated_parts, evaluation_calls
from .observe import Observation, observe, tensors_in
from .rebuild import constructor_of
from .repeatable import demand_repeatable
from .same import demand_same_at_other_sizes, demand_same_results
from .state import modes_kept, state_kept
from .stored import Stored, stored_at, stored_in_module, tied_names
from .symbolic import place_of_node, trace_calls
from .voxels import link_maps, name_maps

METHODS = ("auto", "fx", "export")
Example = Mapping[int | str, Any]
TRACED_BATCH_SIZE = 2
"""Sizes are observed at this many samples and at one more; at one sample BatchNorm may refuse to train."""
TIMES_OBSERVED = 3
"""At each of the two sizes, with other example inputs: sizes that depend on the data differ."""


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
        layers = [
            layer if layer.output is None else layer.replace(output=without_estimates(layer.output))
            for layer in self.layers
        ]
        content = msgspec.json.encode([layers, self.output, self.tied])
        return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Tracing:
    """How to find a model's layers."""

    method: str = "auto"
    """fx: torch.fx, which keeps functions as they are written; export: torch.export, which follows more of
    Python; auto: fx, and export where fx cannot."""
    granularity: str = "leaf"
    """What is one layer: granularity.layer_rule."""


def trace(
    task: Task,
    model: nn.Module,
    batch_size: int = TRACED_BATCH_SIZE,
    how: Tracing = Tracing(),
) -> TracedModel:
    """Return the layers of a task's model, which it runs at batch_size and at batch_size + 1 samples.

    Raises:
        InputError: the model cannot be traced or run, or a tensor is neither parameter nor buffer; with the
            user's line.
    """
    if not model.training:
        raise InputError(
            f"task {task.name}: {task.factory} returns a model in eval mode; "
            "return it as it trains (parts of it may be in eval mode)"
        )
    if how.method not in METHODS:
        raise InputError(f"--trace is {how.method!r}, expected one of {', '.join(METHODS)}")
    sizes = (batch_size, batch_size + 1) * TIMES_OBSERVED
    demand_repeatable(model, *(inputs_of(task, size, model) for size in sizes[:2]))
    examples = [inputs_of(task, size, model) for size in sizes]
    rule = layer_rule(model, how.granularity)
    if how.method != "export":
        try:
            found = _traced(model, examples, sizes, lambda: _fx_calls(model, examples[0], rule))
            demand_same_at_other_sizes(task, model, found.calls, batch_size, "export")
            return found
        except InputError as error:
            if how.method == "fx":
                raise
            by_fx = error
    try:
        two = (examples[0], examples[1])
        found = _traced(model, examples, sizes, lambda: export_calls(model, two, rule, batch_size))
        demand_same_at_other_sizes(task, model, found.calls, batch_size, "fx")
        return found
    except InputError as by_export:
        if how.method == "export":
            raise
        raise InputError(f"{by_fx} (torch.export: {by_export})") from None


def _fx_calls(model: nn.Module, example: Example, rule: IsLayer) -> fx.Graph:
    calls = trace_calls(model, example, rule)
    demand_same_results(model, calls, example, other_method="export")
    return calls


def _traced(
    model: nn.Module,
    examples: Sequence[Example],
    batch_sizes: Sequence[int],
    trace_model: Callable[[], fx.Graph],
) -> TracedModel:
    calls, evaluation = _in_both_modes(model, trace_model)
    observations = [observe(model, calls, copied(example)) for example in examples]
    if link_maps(model, calls, {node: found.value for node, found in observations[0].items()}):
        evaluation = {n: (args, {**n.kwargs, **kw}) for n, (args, kw) in evaluation.items()}
        observations = [observe(model, calls, copied(example)) for example in examples]
    inputs = tuple(examples[0])
    return _Builder(model, calls, evaluation, inputs, observations, batch_sizes).build()


def _in_both_modes(
    model: nn.Module, trace_model: Callable[[], fx.Graph]
) -> tuple[fx.Graph, dict[fx.Node, Call]]:
    """Return a model's calls in training, and what each receives in evaluation."""
    _demand_unhooked_parameters(model)
    with state_kept(model):
        training = trace_model()
    _demand_registered_tensors(model, training)
    with modes_kept(model), state_kept(model):
        model.eval()
        evaluation = trace_model()
    return training, evaluation_calls(training, evaluation)


def _demand_unhooked_parameters(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise InputError(
                f"the model: parameter {name} has a hook of its own, which a generated stage would not have; "
                "remove it, and do with the gradients in forward or in the optimizer what it does"
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
        evaluation: Mapping[fx.Node, Call],
        input_keys: tuple[int | str, ...],
        observations: Sequence[Mapping[fx.Node, Observation]],
        batch_sizes: Sequence[int],
    ) -> None:
        self.model = model
        self.calls = calls
        self.evaluation = evaluation
        self.input_keys = list(input_keys)
        self.observations = observations
        self.batch_sizes = batch_sizes
        self.names = layer_names(calls)
        for observed in observations:
            name_maps({node: found.value for node, found in observed.items()}, self.names)
        self.standing: dict[fx.Node, Argument] = {}
        """What stands for a node's value: the layer that holds it now, or a literal."""
        self.specs: dict[fx.Node, ValueSpec] = {}
        """What the layers so far return."""

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
        """Whether a call always gives the same Python value."""
        if node.op not in ("call_function", "call_method"):
            return False
        first, *others = (observed[node].value for observed in self.observations)
        has_tensors = any(True for _ in tensors_in([first, *others]))
        return not has_tensors and all(type(o) is type(first) and bool(o == first) for o in others)

    def _layer(self, node: fx.Node) -> LayerNode:
        observed = [observation[node] for observation in self.observations]
        first = observed[0]
        operation = self._operation(node)
        stored = Stored()
        if isinstance(operation, ModuleOperation):
            stored = stored_in_module(self.model, operation.path)
        elif isinstance(operation, AttributeOperation):
            stored = stored_at(self.model, operation.path)
        arguments, keywords = self._arguments(node)
        output = value_spec([each.value for each in observed], self.batch_sizes)
        taken = (self.specs.get(other) for other in node.all_input_nodes)
        if isinstance(output, NumberSpec) and any(s is not None and is_ragged(s) for s in taken):
            output = output.replace(ragged=True)  # Proportional by chance only: count + 1.
        self.specs[node] = output
        layer = LayerNode(
            name=self.names[node],
            operation=operation,
            arguments=arguments,
            keyword_arguments=keywords,
            output=output,
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

    def _arguments(self, node: fx.Node) -> tuple[tuple[Argument, ...], dict[str, Argument]]:
        if node.op == "placeholder":
            return (), {}
        other_arguments, other_keywords = self.evaluation[node]
        try:
            arguments = by_mode(self._sequence(node.args), self._sequence(other_arguments))
            keywords = by_mode(self._mapping(node.kwargs), self._mapping(other_keywords))
        except ValueError as error:
            raise Undescribable(str(error)) from None
        assert isinstance(arguments, SequenceArgument)
        assert isinstance(keywords, MappingArgument)
        return arguments.items, keywords.items

    def _sequence(self, items: Sequence[Any]) -> SequenceArgument:
        described = tuple(argument_of(item, self._resolve) for item in items)
        return SequenceArgument(type="tuple", items=described)

    def _mapping(self, items: Mapping[str, Any]) -> MappingArgument:
        described = {key: argument_of(item, self._resolve) for key, item in items.items()}
        return MappingArgument(items=described)

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
            evaluated=evaluated_parts(module),
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
        if len(changed) > 1 or not changed <= taken or observation.overwrites_stored:
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
