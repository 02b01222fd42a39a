"""What PipeDream's text graphs call a layer: a module as it prints, an operation by PipeDream's word for it.

The stages of a text graph can be generated where every description has its arguments; an operation that
PipeDream has no word for is described by its name alone, and the generator refuses it.
"""

from collections.abc import Callable, Mapping

from stagewright.graph import (
    AttributeOperation,
    Constructor,
    ExternalOperation,
    FunctionOperation,
    InputOperation,
    LayerNode,
    MethodOperation,
    ModuleOperation,
)
from stagewright.value import (
    Argument,
    LayerRef,
    MappingArgument,
    ModeArgument,
    SequenceArgument,
    SliceArgument,
    SpecialValue,
    TorchConstant,
)

FEATURES = "Features"
"""The features of a sparse tensor, `x.F`: a word of ours, as PipeDream has none."""


def describe(layer: LayerNode) -> str:
    """Return a layer as a text graph describes it; its inputs are the edges into its node."""
    operation = layer.operation
    match operation:
        case InputOperation():
            return f"Input{operation.key}"
        case ModuleOperation():
            call = operation.constructor or Constructor(type=operation.type)
            keywords = call.keyword_arguments.items()
            words = [_print(argument) for argument in call.arguments]
            words += [f"{name}={_print(argument)}" for name, argument in keywords]
            return f"{call.type.rpartition('.')[2]}({', '.join(words)})"
        case FunctionOperation():
            written = _FUNCTIONS.get(operation.target)
            return _described(layer, written, operation.target)
        case MethodOperation():
            written = _METHODS.get(operation.name)
            return _described(layer, written, operation.name)
        case AttributeOperation():
            return operation.path
        case ExternalOperation():
            return operation.description


def _described(layer: LayerNode, written: "_Writer | None", name: str) -> str:
    """Return PipeDream's word for a call; its name where there is none, or not for these arguments."""
    if written is None or any(name != "dim" for name in layer.keyword_arguments):
        return name
    return written((*layer.arguments, *layer.keyword_arguments.values())) or name


def _of_two(word: str) -> "_Writer":
    """Return what writes an operation of two layers' values."""

    def write(arguments: tuple[Argument, ...]) -> str | None:
        are_layers = [isinstance(argument, LayerRef) for argument in arguments]
        return word if are_layers == [True, True] else None

    return write


def _with_numbers(word: str) -> "_Writer":
    """Return what writes an operation of one layer's value and numbers."""

    def write(arguments: tuple[Argument, ...]) -> str | None:
        first, *numbers = arguments
        plain = all(isinstance(n, int) and not isinstance(n, bool) for n in numbers)
        if not isinstance(first, LayerRef) or not numbers or not plain:
            return None
        return f"{word}({', '.join(map(str, numbers))})"

    return write


def _concatenation(arguments: tuple[Argument, ...]) -> str | None:
    items, *numbers = arguments
    if not isinstance(items, SequenceArgument) or len(numbers) != 1:
        return None
    is_plain = all(isinstance(item, LayerRef) for item in items.items)
    return f"Concat({numbers[0]})" if is_plain and isinstance(numbers[0], int) else None


def _sparse_concatenation(arguments: tuple[Argument, ...]) -> str | None:
    return "Concat" if all(isinstance(item, LayerRef) for item in arguments) else None


def _features(arguments: tuple[Argument, ...]) -> str | None:
    return FEATURES if len(arguments) == 2 and arguments[1] == "F" else None


_Writer = Callable[[tuple[Argument, ...]], str | None]
_FUNCTIONS: Mapping[str, _Writer] = {
    "operator.add": _of_two("Add"), "operator.iadd": _of_two("Add"), "torch.add": _of_two("Add"),
    "operator.mul": _of_two("Mul"), "operator.imul": _of_two("Mul"), "torch.mul": _of_two("Mul"),
    "operator.getitem": _with_numbers("__getitem__"), "torch.transpose": _with_numbers("Transpose"),
    "torch.flatten": _with_numbers("Flatten"), "torch.cat": _concatenation,
    "MinkowskiEngine.cat": _sparse_concatenation, "builtins.getattr": _features,
}  # fmt: skip
_METHODS: Mapping[str, _Writer] = {
    "view": _with_numbers("View"), "size": _with_numbers("Size"),
    "transpose": _with_numbers("Transpose"), "flatten": _with_numbers("Flatten"),
}  # fmt: skip


def _print(argument: Argument) -> str:
    """Return an argument as Python prints it."""
    match argument:
        case SequenceArgument():
            inner = ", ".join(map(_print, argument.items))
            if argument.type == "list":
                return f"[{inner}]"
            return f"({inner},)" if len(argument.items) == 1 else f"({inner})"
        case MappingArgument():
            return f"{{{', '.join(f'{k!r}: {_print(v)}' for k, v in argument.items.items())}}}"
        case SliceArgument():
            return (
                f"slice({', '.join(map(_print, (argument.start, argument.stop, argument.step)))})"
            )
        case LayerRef() | TorchConstant() | SpecialValue():
            return argument.name
        case ModeArgument():
            return _print(argument.training)
        case _:
            return repr(argument)
