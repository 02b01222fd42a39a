"""Expressions of generated code: arguments, constructors, and the calls of functions and methods.

Nothing from a file gets into code as it is: strings become literals, and each other word is checked first.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stagewright.document import InputError
from stagewright.graph import Constructor, FunctionOperation, LayerNode, MethodOperation
from stagewright.value import (
    DTYPE_BYTES,
    Argument,
    LayerRef,
    MappingArgument,
    ModeArgument,
    SequenceArgument,
    SliceArgument,
    SpecialValue,
    TorchConstant,
)

from .layout import Expression, Group, flat, literal, named, sequence
from .names import is_identifier
from .targets import (
    BINARY_OPERATORS,
    CALLED_OPERATORS,
    INPLACE_OPERATORS,
    READABLE_ATTRIBUTES,
    UNARY_OPERATORS,
    is_constructor,
    is_function,
    is_method,
)

TORCH_CONSTANTS = frozenset(DTYPE_BYTES) | {
    "channels_last", "channels_last_3d", "contiguous_format", "preserve_format",
    "strided", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc",
    "complex32", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2",
}  # fmt: skip
SPECIAL_VALUES = {
    "inf": 'float("inf")', "-inf": 'float("-inf")', "nan": 'float("nan")', "ellipsis": "...",
}  # fmt: skip
SIMPLE_OPERAND = re.compile(r"-?[\w.]+")
"""What stands beside ** without spaces."""
SHORT_NAMES = {
    "torch.nn.functional.": "F.", "torch.nn.": "nn.", "MinkowskiEngine.": "ME.",
    "stagewright.models.minkowski.voxels.": "voxels.",
}  # fmt: skip


@dataclass(kw_only=True)
class Scope:
    """What an expression may refer to, and what it turned out to need."""

    place: str
    """Where a wrong argument is, for messages: "graph.json: layer 'conv1'"."""
    values: Mapping[str, str] = field(default_factory=dict)
    """From each layer's name to the expression of its value."""
    imports: set[str] = field(default_factory=set)
    """Names of modules that the expressions use: "torch", "nn", "F", "ME", "voxels", "math", "operator"."""
    needs_device: bool = False
    """Whether an expression uses the variable `device`."""

    def refuse(self, found: str, expected: str) -> InputError:
        """Return the error for something in the graph that cannot be generated."""
        return InputError(f"{self.place}: {found}, expected {expected}; profile the model again")

    def path(self, target: str) -> str:
        """Return a checked dotted name as generated code writes it, and note its import."""
        for long, short in SHORT_NAMES.items():
            if target.startswith(long):
                self.imports.add(short[:-1])
                return short + target.removeprefix(long)
        self.imports.add(target.partition(".")[0])
        return target


def argument_expression(argument: Argument, scope: Scope) -> Expression:
    """Return what stands for an argument.

    Raises:
        InputError: it has a constant or a layer that generated code does not know.
    """
    match argument:
        case None | bool() | int() | float():
            return repr(argument)
        case str():
            return literal(argument)
        case LayerRef(name=name):
            return scope.values[name]
        case SequenceArgument(type=kind, items=items):
            return sequence([argument_expression(item, scope) for item in items], kind)
        case MappingArgument(items=mapping):
            return _mapping(mapping, scope)
        case SliceArgument(start=start, stop=stop, step=step):
            parts = (argument_expression(part, scope) for part in (start, stop, step))
            return Group("slice(", tuple(parts), ")")
        case TorchConstant(name=name):
            return _torch_constant(name, scope)
        case SpecialValue(name=name):
            return SPECIAL_VALUES[name]
        case ModeArgument(training=training, evaluation=evaluation):
            values = [flat(argument_expression(v, scope)) for v in (training, evaluation)]
            return f"({values[0]} if self.training else {values[1]})"


def call_items(
    arguments: Sequence[Argument], keyword_arguments: Mapping[str, Argument], scope: Scope
) -> tuple[Expression, ...]:
    """Return what stands between the parentheses of a call.

    Raises:
        InputError: a keyword is no identifier, or an argument is not known.
    """
    items = [argument_expression(argument, scope) for argument in arguments]
    for name, value in keyword_arguments.items():
        if not is_identifier(name):
            raise scope.refuse(f"a keyword argument is named {name!r}", "an identifier")
        items.append(named(name, argument_expression(value, scope)))
    return tuple(items)


def constructor_expression(constructor: Constructor, scope: Scope) -> Expression:
    """Return the call that builds a module.

    Raises:
        InputError: the class is none of torch.nn or MinkowskiEngine, or an argument is not known.
    """
    if not is_constructor(constructor.type):
        raise scope.refuse(
            f"the constructor is {constructor.type!r}", "a class of torch.nn or MinkowskiEngine"
        )
    items = call_items(constructor.arguments, constructor.keyword_arguments, scope)
    return Group(f"{scope.path(constructor.type)}(", items, ")")


def function_expression(layer: LayerNode, scope: Scope) -> Expression:
    """Return a layer's call of a function; operators are written as operators.

    Raises:
        InputError: the function is not one that generated code may call.
    """
    assert isinstance(layer.operation, FunctionOperation)
    target = layer.operation.target
    module, _, name = target.rpartition(".")
    if module == "operator" and not layer.keyword_arguments:
        written = _operator(name, layer.arguments, scope)
        if written is not None:
            return written
    if target == "builtins.getattr":
        return _attribute(layer.arguments, scope)
    if not is_function(target):
        raise scope.refuse(
            f"the function is {target!r}", "a computing one of torch, operator or math"
        )
    items = call_items(layer.arguments, layer.keyword_arguments, scope)
    return Group(f"{scope.path(target)}(", items, ")")


def method_expression(layer: LayerNode, scope: Scope) -> Expression:
    """Return a layer's call of a method of its first argument.

    Raises:
        InputError: the method is not one that generated code may call.
    """
    assert isinstance(layer.operation, MethodOperation)
    name = layer.operation.name
    if not is_method(name):
        raise scope.refuse(f"the method is {name!r}", "a computing one of tensors")
    if not layer.arguments or not isinstance(layer.arguments[0], LayerRef):
        raise scope.refuse(
            f"method {name!r} is called on no layer's value", "one as first argument"
        )
    owner = flat(argument_expression(layer.arguments[0], scope))
    items = call_items(layer.arguments[1:], layer.keyword_arguments, scope)
    return Group(f"{owner}.{name}(", items, ")")


def inplace_operator(layer: LayerNode) -> str | None:
    """Return the sign of a layer that is an in-place operator: "+="; None if it is none."""
    if not isinstance(layer.operation, FunctionOperation) or len(layer.arguments) != 2:
        return None
    module, _, name = layer.operation.target.rpartition(".")
    return INPLACE_OPERATORS.get(name) if module == "operator" else None


def _operator(name: str, arguments: Sequence[Argument], scope: Scope) -> Expression | None:
    """Return an operator's expression; None if operator.name is none that is known."""
    if name == "getitem" and len(arguments) == 2 and isinstance(arguments[0], LayerRef):
        return f"{scope.values[arguments[0].name]}[{_subscript(arguments[1], scope)}]"
    operands = [_operand(argument, scope) for argument in arguments]
    if name in BINARY_OPERATORS and len(operands) == 2:
        is_tight = name == "pow" and all(SIMPLE_OPERAND.fullmatch(text) for text in operands)
        space = "" if is_tight else " "
        return f"{operands[0]}{space}{BINARY_OPERATORS[name]}{space}{operands[1]}"
    if name in UNARY_OPERATORS and len(operands) == 1:
        return f"{UNARY_OPERATORS[name]}{operands[0]}"
    if name in INPLACE_OPERATORS or name in CALLED_OPERATORS:
        scope.imports.add("operator")
        return Group(f"operator.{name}(", call_items(arguments, {}, scope), ")")
    return None


def _operand(argument: Argument, scope: Scope) -> str:
    """Return an operand; a negative number in parentheses, as ** binds more tightly than a sign."""
    text = flat(argument_expression(argument, scope))
    is_number = isinstance(argument, int | float) and not isinstance(argument, bool)
    return f"({text})" if is_number and text.startswith("-") else text


def _subscript(argument: Argument, scope: Scope) -> str:
    """Return what stands between square brackets: "0", ":, 1:2", "..., None"."""
    if isinstance(argument, SequenceArgument) and argument.type == "tuple" and argument.items:
        parts = [_subscript_part(item, scope) for item in argument.items]
        return ", ".join(parts) + ("," if len(parts) == 1 else "")
    return _subscript_part(argument, scope)


def _subscript_part(argument: Argument, scope: Scope) -> str:
    if not isinstance(argument, SliceArgument):
        return flat(argument_expression(argument, scope))
    start, stop, step = (
        "" if part is None else flat(argument_expression(part, scope))
        for part in (argument.start, argument.stop, argument.step)
    )
    return f"{start}:{stop}" + (f":{step}" if step else "")


def _attribute(arguments: Sequence[Argument], scope: Scope) -> Expression:
    if len(arguments) != 2 or not isinstance(arguments[0], LayerRef):
        raise scope.refuse("getattr is called on no layer's value", "a layer's value and a name")
    name = arguments[1]
    if not isinstance(name, str) or name not in READABLE_ATTRIBUTES:
        known = ", ".join(sorted(READABLE_ATTRIBUTES))
        raise scope.refuse(f"the attribute is {name!r}", f"one of {known}")
    return f"{scope.values[arguments[0].name]}.{name}"


def _mapping(items: Mapping[str, Argument], scope: Scope) -> Expression:
    pairs: list[Expression] = []
    for key, value in items.items():
        written = argument_expression(value, scope)
        if isinstance(written, Group):
            head = f"{literal(key)}: {written.head}"
            pairs.append(Group(head, written.items, written.tail, written.is_display))
        else:
            pairs.append(f"{literal(key)}: {written}")
    return Group("{", tuple(pairs), "}", is_display=True)


def _torch_constant(name: str, scope: Scope) -> Expression:
    """Return a constant of torch. A device is the stage's own: the profiled one is another machine's."""
    if re.fullmatch(r"device:[a-z]+", name, flags=re.ASCII):
        scope.needs_device = True
        return "device"
    if name not in TORCH_CONSTANTS:
        raise scope.refuse(f"a constant is {name!r}", "a dtype, memory format, layout or device")
    scope.imports.add("torch")
    return f"torch.{name}"
