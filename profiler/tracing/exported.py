"""Tracing with torch.export, for models that torch.fx cannot follow: the same graph of calls.

An exported program is flat and made of operators. Those of one call of a layer's module become that call
again; the others stay, written as methods, operators and functions where these do the same, else as
operators of torch.ops.aten.
The graph must compute what the model does on the example input: same.demand_same_results.
"""

import inspect
import io
import itertools
import logging
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from stagewright.document import InputError

from .granularity import IsLayer
from .guards import demand_any_size
from .same import demand_same_results
from .symbolic import SOURCE, demand_no_transform, first_line, is_users, place_of_error

METHODS = {
    "view.default": "view", "reshape.default": "reshape", "transpose.int": "transpose",
    "permute.default": "permute", "expand.default": "expand", "contiguous.default": "contiguous",
    "unsqueeze.default": "unsqueeze", "squeeze.dim": "squeeze", "flatten.using_ints": "flatten",
    "split.Tensor": "split", "chunk.default": "chunk", "softmax.int": "softmax", "sym_size.int": "size",
    "mean.dim": "mean", "tanh.default": "tanh", "relu.default": "relu", "detach.default": "detach",
}  # fmt: skip
"""Operators of torch.ops.aten that a method of tensors calls with the same arguments."""
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "add.Tensor": operator.add, "sub.Tensor": operator.sub, "mul.Tensor": operator.mul,
    "div.Tensor": operator.truediv, "matmul.default": operator.matmul, "cat.default": torch.cat,
}  # fmt: skip
ATTENTION = "scaled_dot_product_attention.default"
CHECKS = re.compile(r"_assert_|sym_constrain_range")
"""Operators that only check what the trace took for granted."""
LARGEST_CONSTANT = 64
"""Elements of a tensor made in forward that is written out."""
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def export_calls(
    model: nn.Module,
    examples: tuple[Mapping[int | str, Any], Mapping[int | str, Any]],
    is_layer: IsLayer,
    num_samples: int,
) -> fx.Graph:
    """Return the graph of a model's calls; its placeholders are in the order of the inputs.

    Args:
        model: in the mode to trace.
        examples: inputs at two micro-batch sizes; sizes that differ between them are those of the batch.
        is_layer: whether a module at a path is one layer.
        num_samples: in the first example.

    Raises:
        InputError: the model cannot be exported, goes another way for other numbers of samples, or returns
            something other than tensors, numbers, None, and tuples, lists or dicts of them.
    """
    program = _export(model, examples, _coarse_layers(model, is_layer))
    demand_any_size(program, num_samples)
    graph = _Rewriter(model, program, examples[0], is_layer).graph()
    demand_same_results(model, graph, examples[0], other_method="fx")
    return graph


def _coarse_layers(model: nn.Module, is_layer: IsLayer) -> tuple[str, ...]:
    """Return the paths of the layers that are the user's modules, which may take and return anything."""
    paths: list[str] = []
    for path, module in model.named_modules():
        is_inside = any(path.startswith(f"{outer}.") for outer in paths)
        is_users_own = not type(module).__module__.startswith("torch.nn")
        if path and not is_inside and is_users_own and is_layer(module, path):
            paths.append(path)
    return tuple(paths)


def _export(
    model: nn.Module,
    examples: tuple[Mapping[int | str, Any], Mapping[int | str, Any]],
    with_signature: tuple[str, ...],
) -> Any:
    """Return the exported program, with the signatures of some modules' calls where torch can tell them."""
    first, second = examples
    arguments = tuple(value for key, value in first.items() if isinstance(key, int))
    keywords = {key: value for key, value in first.items() if isinstance(key, str)}
    sizes = pytree.tree_map(_dynamic_sizes, dict(first), dict(second))
    positional = [sizes[key] for key in first if isinstance(key, int)]
    try:
        bound = inspect.signature(model.forward).bind(
            *positional, **{key: sizes[key] for key in keywords}
        )
        with warnings.catch_warnings(), torch.enable_grad(), _silent():
            warnings.simplefilter("ignore")
            return torch.export.export(
                model,
                arguments,
                keywords,
                dynamic_shapes=dict(bound.arguments),
                strict=False,
                preserve_module_call_signature=with_signature,
            )
    except Exception as error:  # Export raises errors of many kinds, those of the model's code too.
        if with_signature:  # Such as two calls of a module with other keywords.
            return _export(model, examples, ())
        raise InputError(
            f"{place_of_error(error)}: cannot be exported: {type(error).__name__}: {first_line(error)}; "
            "write it so that only sizes of the batch change from step to step"
        ) from error


@contextmanager
def _silent() -> Iterator[None]:
    """Keep torch from logging and printing what it could not trace: the error says it."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _dynamic_sizes(first: Any, second: Any) -> Any:
    if not isinstance(first, torch.Tensor):
        return None
    pairs = enumerate(zip(first.shape, second.shape, strict=True))
    return {dim: torch.export.Dim.DYNAMIC for dim, (a, b) in pairs if a != b}


class _Rewriter:
    """Writes the calls of a program's nodes, in order."""

    def __init__(
        self,
        model: nn.Module,
        program: Any,
        example: Mapping[int | str, Any],
        is_layer: IsLayer,
    ) -> None:
        self.model = model
        self.program = program
        self.example = example
        self.is_layer = is_layer
        self.made = fx.Graph()
        self.values: dict[fx.Node, Any] = {}
        """What stands for each node of the program: a node of the new graph or a literal."""
        self.stored: dict[fx.Node, str] = {}
        """Placeholders of parameters and buffers, by name."""
        self.regions: dict[fx.Node, tuple[Any, ...]] = {}
        """What regions under torch.no_grad return."""
        self.constants: dict[fx.Node, torch.Tensor] = {}
        self.signatures = {call.fqn: call.signature for call in program.module_call_graph}
        """What calls of layers take and return; the second call of a module has "@1" behind its path."""
        self.nodes = {node.name: node for node in program.graph.nodes}

    def graph(self) -> fx.Graph:
        """Return the new graph."""
        self._inputs()
        self._write_all(self.program.graph_module)
        (output,) = (node for node in self.program.graph.nodes if node.op == "output")
        flat = [self._value(item) for item in output.args[0]]
        value = pytree.tree_unflatten(flat, self.program.call_spec.out_spec)
        self.made.output(_plain(value))
        return self.made

    def _write_all(self, program: fx.GraphModule) -> None:
        nodes = [
            node
            for node in program.graph.nodes
            if node.op == "call_function" and not CHECKS.search(str(node.target))
        ]
        for key, run in itertools.groupby(nodes, key=self._module_call):
            group = list(run)
            if key is None or not (
                self._write_call(key, group) or self._write_layer(key[1], group)
            ):
                for node in group:
                    self._write(program, node)

    def _inputs(self) -> None:
        signature = self.program.graph_signature
        targets = {spec.arg.name: spec for spec in signature.input_specs}
        inputs = []
        for node in self.program.graph.nodes:
            if node.op != "placeholder":
                continue
            spec = targets[node.name]
            if spec.kind.name in ("PARAMETER", "BUFFER"):
                self.stored[node] = spec.target
            elif spec.kind.name == "CONSTANT_TENSOR":
                self.constants[node] = self.program.constants[spec.target]
            else:
                inputs.append(node)
        waiting = iter(inputs)
        for key, value in self.example.items():
            place = self.made.placeholder(f"input_{key}" if isinstance(key, int) else key)
            for path, _ in pytree.tree_flatten_with_path(value)[0]:
                old = next(waiting)
                self.values[old] = self._element(place, path)
                if not path:
                    place._rename(old.name)

    def _element(self, whole: fx.Node, path: Sequence[Any]) -> fx.Node:
        """Return what stands at a place of a tuple, list or dict."""
        for step in path:
            index = step.key if isinstance(step, pytree.MappingKey) else step.idx
            whole = self.made.call_function(operator.getitem, (whole, index))
        return whole

    def _value(self, item: Any) -> Any:
        """Return what stands for an argument; stored tensors and constants are made where they are used."""
        if not isinstance(item, fx.Node):
            return item
        if item in self.stored and item not in self.values:
            self.values[item] = self.made.get_attr(self.stored[item])
        if item in self.constants and item not in self.values:
            self.values[item] = self._constant(self.constants[item])
        return self.values[item]

    def _constant(self, tensor: torch.Tensor) -> fx.Node:
        if tensor.numel() > LARGEST_CONSTANT:
            raise InputError(
                f"the model: forward makes a tensor of {tensor.numel()} constant numbers; register it as a "
                "buffer (self.register_buffer)"
            )
        options: dict[str, Any] = {"dtype": tensor.dtype, "device": tensor.device}
        return self.made.call_function(torch.tensor, (tensor.tolist(),), options)

    def _write(self, program: fx.GraphModule, node: fx.Node) -> None:
        demand_no_transform(node, _source(node))
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            self._write_region(program, node)
            return
        if node.target is operator.getitem and node.args[0] in self.regions:
            region, index = cast(tuple[fx.Node, int], node.args)
            self.values[node] = self.regions[region][index]
            return
        arguments, keywords = fx.node.map_arg((node.args, node.kwargs), self._value)
        target: Any = node.target
        name = str(target).removeprefix("aten.")
        if name in METHODS and not keywords:
            made = self.made.call_method(METHODS[name], arguments)
        elif name == ATTENTION:
            # All of them, as a call in evaluation leaves out the dropout that one in training has.
            more = [a.default_value for a in target._schema.arguments if not a.kwarg_only]
            arguments = (*arguments, *more[len(arguments) :])
            made = self.made.call_function(
                functional.scaled_dot_product_attention, arguments, keywords
            )
        elif name in FUNCTIONS and not keywords:
            made = self.made.call_function(FUNCTIONS[name], arguments)
        elif name == "lift_fresh_copy.default":
            made = self.made.call_method("clone", arguments)
        else:
            made = self.made.call_function(target, arguments, keywords)
            made._rename(node.name)
        made.meta[SOURCE] = _source(node)
        self.values[node] = made

    def _write_region(self, program: fx.GraphModule, node: fx.Node) -> None:
        """Write what stands under torch.no_grad: nothing that it takes has a gradient."""
        name = getattr(node.target, "__name__", "")
        if name != "wrap_with_set_grad_enabled":
            raise InputError(
                f"{_source(node)}: a part of the forward is under {name}, which a layer "
                "graph does not hold; put it into an nn.Module whose class has stagewright_layer = True"
            )
        enabled, body, *taken = cast(tuple[Any, ...], node.args)
        inner = cast(fx.GraphModule, program.get_submodule(str(body.target)))
        places = [n for n in inner.graph.nodes if n.op == "placeholder"]
        for place, item in zip(places, taken, strict=True):
            value = self._value(item)
            is_cut = not enabled and isinstance(value, fx.Node) and _is_tensor(item)
            self.values[place] = self.made.call_method("detach", (value,)) if is_cut else value
        self._write_all(inner)
        (output,) = (n for n in inner.graph.nodes if n.op == "output")
        self.regions[node] = tuple(self._value(item) for item in output.args[0])

    def _module_call(self, node: fx.Node) -> tuple[str, str] | None:
        """Return which call of which module a node belongs to: the outermost that is one layer."""
        for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
            is_real = path and not path.startswith("_empty")
            if is_real and self.is_layer(self.model.get_submodule(path), path):
                return key, path
        return None

    def _write_call(self, key: tuple[str, str], group: Sequence[fx.Node]) -> bool:
        """Write one call of a layer with all that it takes and returns; return whether it could be."""
        name, path = key
        number = re.search(r"@\d+\Z", name)
        signature = self.signatures.get(path + (number[0] if number else ""))
        if signature is None:
            return False
        inside = set(group)
        returned = [self.nodes.get(getattr(item, "name", "")) for item in signature.outputs]
        of_call = {node for node in returned if node is not None and self._module_call(node) == key}
        given = {node for node in group if not inside.issuperset(_users(node))}
        if not given <= of_call <= inside:
            return False
        taken = [
            item.value if hasattr(item, "value") else self._value(self.nodes[item.name])
            for item in signature.inputs
        ]
        arguments, keywords = pytree.tree_unflatten(taken, signature.in_spec)
        made = self.made.call_module(path, arguments, keywords)
        made.meta[SOURCE] = _source(group[0])
        places = pytree.tree_unflatten(list(range(len(returned))), signature.out_spec)
        for steps, position in pytree.tree_flatten_with_path(places)[0]:
            node = returned[position]
            if node in given:
                self.values[node] = self._element(made, steps)
        return True

    def _write_layer(self, path: str, group: Sequence[fx.Node]) -> bool:
        """Write one call of a layer's module in place of its operators; return whether it could be."""
        module = self.model.get_submodule(path)
        if _num_required(module) != 1:
            return False
        inside = set(group)
        taken = dict.fromkeys(
            other
            for node in group
            for other in node.all_input_nodes
            if other not in inside and _is_tensor(other) and other not in self.stored
        )
        given = [node for node in group if any(user not in inside for user in node.users)]
        if len(taken) != 1 or len(given) != 1 or not _is_tensor(given[0]):
            return False
        is_element = given[0].target is operator.getitem
        if is_element and not (isinstance(module, nn.RNNBase) and given[0].args[1] == 0):
            return False
        (source,) = taken
        made = self.made.call_module(path, (self._value(source),))
        made.meta[SOURCE] = _source(group[0])
        self.values[given[0]] = (
            self.made.call_function(operator.getitem, (made, 0)) if is_element else made
        )
        return True


def _num_required(module: nn.Module) -> int:
    parameters = inspect.signature(module.forward).parameters.values()
    empty = inspect.Parameter.empty
    return sum(p.default is empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)


def _users(node: fx.Node) -> list[fx.Node]:
    """Return what takes a node's value, but for checks."""
    return [user for user in node.users if not CHECKS.search(str(user.target))]


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _source(node: fx.Node) -> str:
    frames = _FRAME.findall(str(node.meta.get("stack_trace") or ""))
    return next(
        (f"{file}:{line}" for file, line in reversed(frames) if is_users(file)), "the model"
    )


def _plain(value: Any) -> Any:
    """Return what the model returns, checked to be of plain containers."""
    if type(value) in (tuple, list):
        return type(value)(_plain(item) for item in value)
    if type(value) is dict:
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, dict | tuple | list) or not (
        value is None or isinstance(value, fx.Node | bool | int | float)
    ):
        raise InputError(
            f"the model: forward returns a {type(value).__name__}, expected tensors, or a plain tuple, list "
            "or dict of them; wrap it in a module that returns what the loss takes, as in .logits"
        )
    return value
