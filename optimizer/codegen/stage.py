"""One stage as the source of a module: its class, __init__ with real constructors, a readable forward."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from stagewright.document import InputError
from stagewright.graph import (
    AttributeOperation,
    FunctionOperation,
    LayerGraph,
    LayerNode,
    MethodOperation,
    ModuleOperation,
)
from stagewright.value import TensorSpec, ValueSpec, VoxelsSpec, parts_of, size_at

from .expressions import (
    Scope,
    argument_expression,
    call_items,
    function_expression,
    inplace_operator,
    method_expression,
)
from .layout import LINE_LENGTH, Expression, Group, flat, lines_of, literal, sequence
from .lifetimes import Variables, variables_of
from .memory import clone_expression, overwritten_inputs, owners_of
from .modules import (
    BODY,
    DEVICE_BUFFER,
    ModuleTree,
    evaluated_modules,
    tied_statements,
)

BEFORE_RANDOM = '''
    @staticmethod
    def before_random(layer: str) -> None:
        """Called right before each layer that draws random numbers; replace it to seed them."""
'''
IMPORT_LINES = {
    "math": "import math", "operator": "import operator",
    "ME": "import MinkowskiEngine as ME", "torch": "import torch",
    "F": "import torch.nn.functional as F", "nn": "from torch import nn",
    "voxels": "from stagewright.models.minkowski import voxels",
}  # fmt: skip
"""In the order of the file."""
STANDARD_LIBRARY = ("math", "operator")


@dataclass(frozen=True, kw_only=True)
class StageInterface:
    """What a stage holds, receives and sends."""

    index: int
    layers: tuple[LayerNode, ...]
    inputs: tuple[LayerNode, ...]
    """The parameters of forward, in order."""
    outputs: tuple[str, ...]
    """The layers whose values it returns; empty for the last stage, which returns the model's output."""


@dataclass(frozen=True, kw_only=True)
class StageCode:
    """A generated stage."""

    interface: StageInterface
    tree: ModuleTree
    source: str

    @property
    def class_name(self) -> str:
        return f"Stage{self.interface.index}"

    @property
    def file_name(self) -> str:
        return f"stage{self.interface.index}.py"


def generate_stage(
    interface: StageInterface, num_stages: int, graph: LayerGraph, place: str
) -> StageCode:
    """Return the source of one stage.

    Args:
        place: where the graph is, for messages.

    Raises:
        InputError: a layer is not one that can be generated.
    """
    tree = ModuleTree(interface.layers, place)
    scope = Scope(place=place)
    is_last = interface.index == num_stages - 1
    constructor = _constructor_lines(tree, graph, interface.layers, scope)
    writer = _ForwardWriter(interface, graph, tree, scope, is_last)
    body = writer.lines()
    if writer.needs_device_buffer():
        scope.imports.add("torch")
        constructor.append(
            f'{" " * BODY}self.register_buffer("{DEVICE_BUFFER}", torch.empty(0), persistent=False)'
        )
    evaluated = evaluated_modules(tree)
    scope.imports.add("nn")
    lines = [
        _docstring(interface, num_stages),
        *_import_lines(scope.imports),
        "",
        "",
        f"class Stage{interface.index}(nn.Module):",
        *_attribute_lines(interface, tree),
        "",
        *constructor,
        *([""] if constructor and evaluated else []),
        *_train_lines(interface.index, evaluated),
        *BEFORE_RANDOM.rstrip("\n").split("\n"),
        "",
        *body,
    ]
    return StageCode(interface=interface, tree=tree, source="\n".join(lines) + "\n")


class _ForwardWriter:
    """Writes forward: one statement per layer."""

    def __init__(
        self,
        interface: StageInterface,
        graph: LayerGraph,
        tree: ModuleTree,
        scope: Scope,
        is_last: bool,
    ) -> None:
        self.interface = interface
        self.graph = graph
        self.tree = tree
        self.scope = scope
        self.is_last = is_last
        bare = [n for n in interface.layers if isinstance(n.operation, AttributeOperation)]
        self.steps = [
            n for n in interface.layers if not isinstance(n.operation, AttributeOperation)
        ]
        returned: Collection[str] = graph.outputs if is_last else interface.outputs
        held = {layer.name for layer in bare}
        self.variables: Variables = variables_of(
            interface.inputs, self.steps, [name for name in returned if name not in held]
        )
        self.values: Mapping[str, str] = dict(self.variables.names) | {
            layer.name: tree.tensor_access(layer.operation.path)
            for layer in bare
            if isinstance(layer.operation, AttributeOperation)
        }

    def lines(self) -> list[str]:
        """Return the lines of forward."""
        self.scope.values = self.values
        cloned = overwritten_inputs(
            self.interface.layers, self.interface.inputs, owners_of(self.graph)
        )
        body: list[str] = []
        for step, layer in enumerate(self.steps, start=1):
            body += self._statement(layer)
            if step in self.variables.released:
                body.append(f"{' ' * BODY}del {', '.join(self.variables.released[step])}")
        body += self._return()
        parameters = [self.values[layer.name] for layer in self.interface.inputs]
        head = lines_of("def ", Group("forward(", ("self", *parameters), ")"), ":", 4)
        return [*head, *self._input_comments(), *self._device(), *self._clones(cloned), *body]

    def _statement(self, layer: LayerNode) -> list[str]:
        scope = self.scope
        scope.place, outer = f"{scope.place}: layer {layer.name!r}", scope.place
        lines = []
        if layer.random:
            lines += lines_of(
                "", Group("self.before_random(", (literal(layer.name),), ")"), "", BODY
            )
        target = self.values.get(layer.name)
        sign = inplace_operator(layer)
        first = layer.inputs[0] if layer.inputs else None
        if sign and target is not None and first is not None and self.values[first] == target:
            operand = flat(argument_expression(layer.arguments[1], scope))
            statement = [f"{' ' * BODY}{target} {sign} {operand}"]
        else:
            prefix = f"{target} = " if target is not None else ""
            statement = lines_of(prefix, self._expression(layer), "", BODY)
        lines += _with_comment(statement, layer.output)
        scope.place = outer
        return lines

    def _expression(self, layer: LayerNode) -> Expression:
        match layer.operation:
            case ModuleOperation(path=path):
                items = call_items(layer.arguments, layer.keyword_arguments, self.scope)
                return Group(f"{self.tree.access(path)}(", items, ")")
            case FunctionOperation():
                return function_expression(layer, self.scope)
            case MethodOperation():
                return method_expression(layer, self.scope)
            case _:
                raise InputError(
                    f"{self.scope.place}: it is known by a description alone, expected an operation; "
                    "profile the model with `stagewright profile`"
                )

    def _return(self) -> list[str]:
        if self.is_last:
            returned = argument_expression(self.graph.output, self.scope)
        else:
            returned = sequence([self.values[name] for name in self.interface.outputs])
        if isinstance(returned, Group) and returned.head == "(" and len(returned.items) > 1:
            bare = f"{' ' * BODY}return {', '.join(map(flat, returned.items))}"
            if len(bare) <= LINE_LENGTH:
                return [bare]
        return lines_of("return ", returned, "", BODY)

    def _input_comments(self) -> list[str]:
        """Return a comment for each received value whose variable does not say which it is."""
        return [
            f"{' ' * BODY}# {self.values[layer.name]}: {literal(layer.name)}{_shape_suffix(layer.output)}"
            for layer in self.interface.inputs
            if not layer.is_input
        ]

    def _device(self) -> list[str]:
        """Return the line that sets device: the first received tensor's, or that of an empty buffer."""
        if not self.scope.needs_device:
            return []
        source = self._device_source()
        return [f"{' ' * BODY}device = {source or f'self.{DEVICE_BUFFER}'}.device"]

    def _device_source(self) -> str | None:
        tensors = (n for n in self.interface.inputs if isinstance(n.output, TensorSpec))
        return next((self.values[layer.name] for layer in tensors), None)

    def needs_device_buffer(self) -> bool:
        """Whether the stage must carry an empty buffer to know its device; known after lines()."""
        return self.scope.needs_device and self._device_source() is None

    def _clones(self, names: Sequence[str]) -> list[str]:
        lines = []
        for name in names:
            variable = self.values[name]
            spec = self.graph.by_name[name].output
            if spec and any(isinstance(part, VoxelsSpec) for part in parts_of(spec)):
                self.scope.imports.add("ME")
            clone = clone_expression(variable, spec)
            lines += lines_of(f"{variable} = ", clone, "  # changed in place below", BODY)
        return lines


def _docstring(interface: StageInterface, num_stages: int) -> str:
    return f'"""Stage {interface.index} of {num_stages}, generated by Stagewright."""\n'


def _import_lines(imports: Collection[str]) -> list[str]:
    standard = [IMPORT_LINES[n] for n in IMPORT_LINES if n in imports and n in STANDARD_LIBRARY]
    other = [IMPORT_LINES[n] for n in IMPORT_LINES if n in imports and n not in STANDARD_LIBRARY]
    return [*standard, *([""] if standard else []), *other]


def _attribute_lines(interface: StageInterface, tree: ModuleTree) -> list[str]:
    inputs = sequence([literal(layer.name) for layer in interface.inputs])
    outputs = sequence([literal(name) for name in interface.outputs])
    return [
        *lines_of("inputs: tuple[str, ...] = ", inputs, "", 4),
        *lines_of("outputs: tuple[str, ...] = ", outputs, "", 4),
        f"    needs_original: bool = {tree.needs_original}",
    ]


def _constructor_lines(
    tree: ModuleTree, graph: LayerGraph, layers: Sequence[LayerNode], scope: Scope
) -> list[str]:
    body = [
        *tree.statements(scope),
        *tied_statements(tree, graph, layers),
    ]
    if evaluated_modules(tree):
        body.append(f"{' ' * BODY}self.train()")
    lines = [
        "    def __init__(self, original: nn.Module | None = None) -> None:",
        "        super().__init__()",
    ]
    if tree.needs_original:
        lines += [
            "        if original is None:",
            '            raise ValueError("parts come from the original model; pass the built model")',
        ]
    return lines + body


def _train_lines(index: int, evaluated: Sequence[str]) -> list[str]:
    if not evaluated:
        return []
    items: Sequence[Expression] = evaluated
    return [
        f'    def train(self, mode: bool = True) -> "Stage{index}":',
        '        """Set the mode; the original keeps some modules in eval mode."""',
        "        super().train(mode)",
        *lines_of("for module in ", sequence(items), ":", BODY),
        "            module.eval()",
        "        return self",
    ]


def _with_comment(lines: list[str], spec: ValueSpec | None) -> list[str]:
    """Return a statement with its value's shape behind it, where there is room."""
    comment = _shape_suffix(spec)
    if len(lines) == 1 and comment and len(lines[0]) + len(comment) + 3 <= LINE_LENGTH:
        return [f"{lines[0]}  #{comment}"]
    return lines


def _shape_suffix(spec: ValueSpec | None) -> str:
    """Return a tensor's shape with B for the micro-batch: " (B, 64, 8, 8)"; empty if it is no tensor."""
    if not isinstance(spec, TensorSpec):
        return ""
    sizes = []
    for dimension, size in enumerate(spec.shape):
        about = "~" if dimension in spec.ragged else ""
        if isinstance(size, int):
            sizes.append(f"{about}{size}")
        else:
            per_sample = size_at(size, 1)
            sizes.append(f"{about}B" if per_sample == 1 else f"{about}{per_sample}B")
    return f" ({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
