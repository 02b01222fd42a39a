"""A text graph as a layer graph that can be generated: its descriptions become modules and calls.

The edges into a node, in the file's order, are the arguments of its call. `hidden` (the hidden state that
nobody gave) and its elements are None. Elements of a tuple that nothing takes are left out.
"""

import re
from collections.abc import Mapping

from stagewright.document import InputError
from stagewright.graph import (
    ExternalOperation,
    FunctionOperation,
    LayerGraph,
    LayerNode,
    MethodOperation,
    ModuleOperation,
    Operation,
)
from stagewright.optimizer.voxels import COORDINATES
from stagewright.pipedream_conversion import to_layer_graph
from stagewright.pipedream_description import FEATURES
from stagewright.pipedream_graph import TextGraph
from stagewright.value import Argument, LayerRef, SequenceArgument

from .descriptions import ModuleText, OperationText, parse_description

LEFT_OUT_IF_UNUSED = ("__getitem__", "Size")
MAKES_SPARSE = frozenset({"stagewright.models.minkowski.voxels.Voxelize"})
"""Of our own layers those whose value is a sparse tensor."""
NUM_TENSORS = {
    "Add": 2, "Mul": 2, "Size": 1, "View": 1, "Transpose": 1, "__getitem__": 1, FEATURES: 1,
}  # fmt: skip
"""The tensors that an operation takes; those that are not here take any number."""


def executable_graph(text_graph: TextGraph, lines: Mapping[str, int], place: str) -> LayerGraph:
    """Return the layer graph of a text graph with operations in place of descriptions.

    Layers have the nodes' identifiers as names; values have no specification (the format holds none).

    Args:
        lines: the line of each node by identifier, for messages.
        place: the file, for messages.

    Raises:
        InputError: a description is not known, or its node has the wrong number of arguments.
    """
    external = to_layer_graph(text_graph, "unknown", batch_size=1)
    reader = _Reader()
    layers: list[LayerNode] = []
    for layer in external.layers:
        try:
            made = reader.executable(layer)
        except ValueError as error:
            raise InputError(f"{place}:{lines[layer.name]}: node {layer.name}: {error}") from None
        if made is not None:
            layers.append(made)
    layers = _without_unused(layers, reader.removable)
    used = {name for layer in layers for name in layer.inputs}
    sinks = tuple(LayerRef(name=n.name) for n in layers if n.name not in used and not n.is_input)
    if not sinks:
        raise InputError(f"{place}: no node computes anything, expected a model")
    output: Argument = sinks[0] if len(sinks) == 1 else SequenceArgument(type="tuple", items=sinks)
    return external.replace(layers=tuple(layers), output=output)


class _Reader:
    """Reads nodes in topological order."""

    def __init__(self) -> None:
        self._parsed: dict[str, ModuleText | OperationText] = {}
        self._nothing: set[str] = set()
        """Nodes whose value is None."""
        self._sparse: set[str] = set()
        """Nodes whose value is a sparse tensor."""
        self.removable: set[str] = set()

    def executable(self, layer: LayerNode) -> LayerNode | None:
        """Return a layer with an operation; None for one whose value is the constant None.

        Raises:
            ValueError: its description is not known, or it has the wrong number of arguments.
        """
        if not re.fullmatch(r"[A-Za-z]\w*\d", layer.name, re.ASCII):
            # Attributes of torch's modules, which a layer must not hide, do not end in a digit.
            raise ValueError(
                f"the identifier is {layer.name!r}, expected a word that ends in a number, as node12"
            )
        if not isinstance(layer.operation, ExternalOperation):
            return layer
        parsed = self._parsed[layer.name] = parse_description(layer.operation.description)
        if isinstance(parsed, ModuleText):
            return self._module(layer, parsed)
        if parsed.name in LEFT_OUT_IF_UNUSED:
            self.removable.add(layer.name)
        sources = [argument.name for argument in layer.arguments if isinstance(argument, LayerRef)]
        if parsed.name == "hidden" or (
            parsed.name == "__getitem__" and set(sources) & self._nothing
        ):
            self._nothing.add(layer.name)
            return None
        operation, arguments = self._call(parsed, sources)
        if set(sources) & self._sparse and parsed.name != FEATURES:
            self._sparse.add(layer.name)
        return layer.replace(operation=operation, arguments=arguments)

    def _module(self, layer: LayerNode, parsed: ModuleText) -> LayerNode:
        arguments = tuple(
            None if isinstance(a, LayerRef) and a.name in self._nothing else a
            for a in layer.arguments
        )
        while arguments and arguments[-1] is None:
            arguments = arguments[:-1]
        if not arguments:
            raise ValueError(f"{parsed.constructor.type} takes nothing, expected an edge into it")
        constructor = parsed.constructor
        first = arguments[0]
        source = first.name if isinstance(first, LayerRef) else None
        if source in self._sparse and constructor.type == "torch.nn.Dropout":
            # MinkowskiEngine's users profile plain dropout on sparse tensors, which has its own class.
            constructor = constructor.replace(type="MinkowskiEngine.MinkowskiDropout")
        if constructor.type.startswith("MinkowskiEngine.") or constructor.type in MAKES_SPARSE:
            self._sparse.add(layer.name)
        keywords: dict[str, Argument] = {}
        if "Transpose" in constructor.type and source in self._sparse and len(arguments) == 2:
            # The second edge says to which coordinates the layer returns; no features of it are taken.
            arguments, keywords = (first,), {COORDINATES: arguments[-1]}
        return layer.replace(
            operation=ModuleOperation(
                path=layer.name, type=constructor.type, constructor=constructor
            ),
            arguments=arguments,
            keyword_arguments=keywords,
            random=parsed.is_random,
            overwrites=source if parsed.writes_in_place else None,
        )

    def _call(
        self, parsed: OperationText, sources: list[str]
    ) -> tuple[Operation, tuple[Argument, ...]]:
        sizes = [name for name in sources if self._is_size(name)] if parsed.name == "View" else []
        tensors = [name for name in sources if name not in sizes]
        expected = NUM_TENSORS.get(parsed.name)
        if set(sources) & self._nothing:
            raise ValueError(f"{parsed.name} takes a hidden state that nobody gave")
        if expected is not None and len(tensors) != expected:
            raise ValueError(
                f"{parsed.name} has {len(tensors)} edges into it, expected {expected} from tensors"
            )
        references = tuple(LayerRef(name=name) for name in tensors)
        numbers = parsed.numbers
        match parsed.name:
            case "Add":
                return FunctionOperation(target="operator.add"), references
            case "Mul":
                return FunctionOperation(target="operator.mul"), references
            case "__getitem__":
                return FunctionOperation(target="operator.getitem"), (*references, *numbers)
            case "Concat":
                return self._concat(tensors, numbers)
            case "Features":
                return FunctionOperation(target="builtins.getattr"), (*references, "F")
            case "View":
                if not sizes and not numbers:
                    raise ValueError("View has no size, expected numbers or an edge from a Size")
                known = tuple(LayerRef(name=name) for name in sizes)
                return MethodOperation(name="view"), (*references, *known, *numbers)
            case _:
                return MethodOperation(name=parsed.name.lower()), (*references, *numbers)

    def _concat(
        self, tensors: list[str], numbers: tuple[int, ...]
    ) -> tuple[Operation, tuple[Argument, ...]]:
        references = tuple(LayerRef(name=name) for name in tensors)
        if len(references) < 2:
            raise ValueError(f"Concat has {len(references)} edges into it, expected at least 2")
        if set(tensors) <= self._sparse:
            return FunctionOperation(target="MinkowskiEngine.cat"), references
        if set(tensors) & self._sparse:
            raise ValueError("Concat takes sparse and dense tensors, expected one kind")
        if not numbers:
            raise ValueError("Concat has no dimension, expected Concat(1)")
        items = SequenceArgument(type="tuple", items=references)
        return FunctionOperation(target="torch.cat"), (items, *numbers)

    def _is_size(self, name: str) -> bool:
        parsed = self._parsed.get(name)
        return isinstance(parsed, OperationText) and parsed.name == "Size"


def _without_unused(layers: list[LayerNode], removable: set[str]) -> list[LayerNode]:
    """Return the layers without sizes and elements that nothing takes, while something else is returned."""
    kept: list[LayerNode] = []
    used: set[str] = set()
    for layer in reversed(layers):
        if layer.name in used or layer.name not in removable:
            kept.append(layer)
            used.update(layer.inputs)
    return kept[::-1] if any(not layer.is_input for layer in kept) else layers
