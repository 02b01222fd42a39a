"""The modules of one stage: a tree with the original model's names, and the statements that build it.

Containers are rebuilt so that state-dict names stay: an nn.ModuleDict where all children are numbered, an
nn.Module with attributes elsewhere. A child whose name cannot be written as an attribute, or that the stage
class uses itself, is put into the container's own table of children.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from stagewright.graph import (
    AttributeOperation,
    LayerGraph,
    LayerNode,
    ModuleOperation,
    StoredTensor,
)

from .expressions import Scope, constructor_expression
from .layout import Expression, Group, flat, lines_of, literal, sequence
from .names import is_identifier

DEVICE_BUFFER = "stage_device"
"""An empty buffer, in stages that make tensors and receive none."""
STAGE_ATTRIBUTES = frozenset(
    {"inputs", "outputs", "needs_original", "before_random", DEVICE_BUFFER}
)
"""Attributes of every stage class; a child of the model with such a name is reached by its table."""
BODY = 8
"""Columns before a statement in a method."""


@dataclass(frozen=True, kw_only=True)
class BareTensor:
    """A parameter or buffer that no module of the stage holds."""

    stored: StoredTensor
    is_parameter: bool


class ModuleTree:
    """The modules and bare tensors of one stage, by path.

    Invariants: a path in `modules` has no other path of `modules` or `tensors` below it, as a module brings
    what is inside it; every prefix of a path is in `containers`, and the root is "".
    """

    def __init__(self, layers: Iterable[LayerNode], place: str) -> None:
        called: dict[str, LayerNode] = {}
        self.tensors: dict[str, BareTensor] = {}
        self.place = place
        for layer in layers:
            operation = layer.operation
            if isinstance(operation, ModuleOperation):
                self._demand_path(operation.path, layer)
                called.setdefault(operation.path, layer)
            elif isinstance(operation, AttributeOperation):
                self._demand_path(operation.path, layer)
                self.tensors[operation.path] = self._bare_tensor(layer)
        self.called = called
        self.modules = {p: called[p] for p in called if not _is_inside(p, called)}
        self.tensors = {p: t for p, t in self.tensors.items() if not _is_inside(p, called)}
        self.containers: dict[str, list[str]] = {"": []}
        for path in (*self.modules, *self.tensors):
            parts = path.split(".")
            for depth in range(len(parts)):
                children = self.containers.setdefault(".".join(parts[:depth]), [])
                if parts[depth] not in children:
                    children.append(parts[depth])

    @property
    def needs_original(self) -> bool:
        """Whether a part comes from the original model: it has no constructor, or values of its own."""
        return any(map(_is_taken, self.modules.values())) or any(
            not tensor.is_parameter and not tensor.stored.persistent
            for tensor in self.tensors.values()
        )

    def access(self, path: str, table: str = "_modules") -> str:
        """Return the expression of a module, or with the table "_parameters" or "_buffers" of a tensor."""
        expression, parent = "self", ""
        parts = path.split(".")
        for depth, part in enumerate(parts):
            last = depth == len(parts) - 1
            expression += self._step(parent, part, table if last else "_modules")
            parent = f"{parent}.{part}" if parent else part
        return expression

    def tensor_access(self, path: str) -> str:
        """Return the expression of a bare parameter or buffer, also of one inside a module."""
        tensor = self.tensors.get(path)
        is_buffer = tensor is not None and not tensor.is_parameter
        return self.access(path, "_buffers" if is_buffer else "_parameters")

    def statements(self, scope: Scope) -> list[str]:
        """Return the lines of __init__ that build the tree."""
        return [line for child in self.containers[""] for line in self._build(child, scope)]

    def _build(self, path: str, scope: Scope) -> list[str]:
        """Return the lines that make what is at a path and all below it."""
        if path in self.tensors:
            return self._build_tensor(path, scope)
        scope.imports.add("nn")
        lines = lines_of(f"{self.access(path)} = ", self._value(path, scope), "", BODY)
        return lines + self._build_below(path, scope)

    def _build_below(self, path: str, scope: Scope) -> list[str]:
        """Return the lines that fill a container, as far as the expression that made it has not."""
        lines: list[str] = []
        for child in self.containers.get(path, []):
            inner = f"{path}.{child}"
            if not self._is_numbered(path):
                lines += self._build(inner, scope)
            else:
                lines += self._build_below(inner, scope)
        return lines

    def _value(self, path: str, scope: Scope) -> Expression:
        """Return the expression that makes a module, or a container with its numbered children."""
        layer = self.modules.get(path)
        if layer is not None:
            return self._module(layer, scope)
        if not self._is_numbered(path):
            return "nn.Module()"
        pairs: list[Expression] = []
        for child in self.containers[path]:
            value = self._value(f"{path}.{child}", scope)
            key = f"{literal(child)}: "
            if isinstance(value, Group):
                pairs.append(Group(key + value.head, value.items, value.tail, value.is_display))
            else:
                pairs.append(key + value)
        return Group("nn.ModuleDict(", (Group("{", tuple(pairs), "}", is_display=True),), ")")

    def _module(self, layer: LayerNode, scope: Scope) -> Expression:
        operation = layer.operation
        assert isinstance(operation, ModuleOperation)
        if operation.constructor is None:
            return Group("original.get_submodule(", (literal(operation.path),), ")")
        local = Scope(place=f"{self.place}: layer {layer.name!r}", imports=scope.imports)
        return constructor_expression(operation.constructor, local)

    def _build_tensor(self, path: str, scope: Scope) -> list[str]:
        tensor = self.tensors[path]
        owner, _, name = path.rpartition(".")
        target = self.access(owner) if owner else "self"
        shape = sequence([repr(size) for size in tensor.stored.spec.shape])
        dtype = f"dtype=torch.{tensor.stored.spec.dtype}"
        empty = Group("torch.empty(", (shape, dtype), ")")
        if tensor.is_parameter:
            scope.imports |= {"torch", "nn"}
            trained = f"requires_grad={tensor.stored.spec.requires_grad}"
            value = Group("nn.Parameter(", (empty, trained), ")")
            return lines_of(f"{self.access(path, '_parameters')} = ", value, "", BODY)
        value = Group("original.get_buffer(", (literal(path),), ")")
        if tensor.stored.persistent:
            scope.imports.add("torch")
            value = empty
        if not is_identifier(name) or (not owner and name in STAGE_ATTRIBUTES):
            return lines_of(f"{target}._buffers[{literal(name)}] = ", value, "", BODY)
        items = (literal(name), value, f"persistent={tensor.stored.persistent}")
        return lines_of("", Group(f"{target}.register_buffer(", items, ")"), "", BODY)

    def _step(self, parent: str, name: str, table: str) -> str:
        if self._is_numbered(parent):
            return f"[{literal(name)}]"
        hidden = not parent and name in STAGE_ATTRIBUTES
        return f".{name}" if is_identifier(name) and not hidden else f".{table}[{literal(name)}]"

    def _is_numbered(self, path: str) -> bool:
        children = self.containers.get(path, []) if path else []
        return bool(children) and all(
            c.isascii() and c.isdigit() and f"{path}.{c}" not in self.tensors for c in children
        )

    def _demand_path(self, path: str, layer: LayerNode) -> None:
        if not all(path.split(".")):
            scope = Scope(place=f"{self.place}: layer {layer.name!r}")
            raise scope.refuse(f"the path is {path!r}", "names with dots between them")

    def _bare_tensor(self, layer: LayerNode) -> BareTensor:
        assert isinstance(layer.operation, AttributeOperation)
        held = (*layer.parameters, *layer.buffers)
        scope = Scope(place=f"{self.place}: layer {layer.name!r}")
        if [tensor.name for tensor in held] != [layer.operation.path]:
            found = f"it holds {[tensor.name for tensor in held]}"
            raise scope.refuse(found, f"one tensor, {layer.operation.path!r}")
        if not all(isinstance(size, int) for size in held[0].spec.shape):
            raise scope.refuse("a stored tensor's size grows with the micro-batch", "a fixed one")
        return BareTensor(stored=held[0], is_parameter=bool(layer.parameters))


def tied_statements(tree: ModuleTree, graph: LayerGraph, layers: Iterable[LayerNode]) -> list[str]:
    """Return the lines that make each group of tied parameters of a stage one parameter."""
    held = {p.name for layer in layers for p in layer.parameters}
    lines = []
    for group in graph.tied:
        first, *others = [name for name in group if name in held] or [""]
        for other in others:
            value = tree.access(first, "_parameters")
            lines += lines_of(f"{tree.access(other, '_parameters')} = ", value, "", BODY)
    return lines


def evaluated_modules(tree: ModuleTree) -> Sequence[str]:
    """Return the expressions of the modules that stay in eval mode while the model trains."""
    found: list[str] = []
    for path, layer in tree.called.items():
        if isinstance(layer.operation, ModuleOperation):
            module = flat(tree.access(path))
            found += [] if layer.operation.training else [module]
            found += [f"{module}.get_submodule({literal(p)})" for p in layer.operation.evaluated]
    return found


def _is_taken(layer: LayerNode) -> bool:
    return isinstance(layer.operation, ModuleOperation) and layer.operation.constructor is None


def _is_inside(path: str, modules: Container[str]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[:depth]) in modules for depth in range(1, len(parts)))
