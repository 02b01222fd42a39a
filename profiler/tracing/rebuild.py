"""Constructor calls that give a module back, found from its attributes and accepted only if they do."""

import inspect
from typing import Any

import torch
from torch import fx, nn

from stagewright.graph import OWN_LAYERS, Constructor
from stagewright.value import Argument

from .describe import Undescribable, argument_of
from .engine_modules import engine_arguments, is_same_part
from .voxels import engine

STORAGE = ("_parameters", "_buffers", "_modules")
"""Attributes of a module whose content is compared by name, shape and dtype, not by value."""
REFUSALS = (TypeError, ValueError, RuntimeError, AssertionError, NotImplementedError)
"""What a constructor raises for arguments that do not fit."""


def constructor_of(module: nn.Module) -> Constructor | None:
    """Return a call of a class of torch.nn, MinkowskiEngine or OWN_LAYERS that gives back the same module.

    Initial values apart. The call is made on the meta device and compared, see `is_same_module`; an argument
    that changes nothing is left out. None: there is no such call (a user's class, hooks, an argument that is
    no literal).
    """
    name = type(module).__name__
    package = next(
        (p for p in (nn, engine()) if p and getattr(p, name, None) is type(module)), None
    )
    path = f"{type(module).__module__}.{name}" if package is None else f"{package.__name__}.{name}"
    if package is None and path not in OWN_LAYERS:
        return None
    given = _engine_arguments_of(module) if package not in (nn, None) else _arguments_of(module)
    if given is None or not _gives_back(module, given):
        return None
    short = _shortened(module, given)
    try:
        arguments = {key: argument_of(value, _refuse_node) for key, value in short.items()}
    except Undescribable:
        return None
    positional = _positional_of(type(module))
    return Constructor(
        type=path,
        arguments=tuple(arguments[key] for key in positional),
        keyword_arguments={key: arguments[key] for key in short if key not in positional},
    )


def is_same_module(module: nn.Module, other: nn.Module) -> bool:
    """Return whether two modules compute the same, given the same tensors.

    They have the same class, parts, hooks and attributes, and parameters and buffers with the same names,
    shapes, dtypes and requires_grad. Whether they are in training or in evaluation is not compared.
    """
    if type(module) is not type(other) or module.extra_repr() != other.extra_repr():
        return False
    mine, others = ({k: v for k, v in vars(m).items() if k != "training"} for m in (module, other))
    if mine.keys() != others.keys():
        return False
    if not all(_is_equal(mine[key], others[key]) for key in mine if key not in STORAGE):
        return False
    if module._modules.keys() != other._modules.keys():
        return False
    parts = zip(module._modules.values(), other._modules.values(), strict=True)
    return _tensors_of(module) == _tensors_of(other) and all(
        a is b if a is None or b is None else is_same_module(a, b) for a, b in parts
    )


def _arguments_of(module: nn.Module) -> dict[str, Any] | None:
    """Return the arguments of a module's class as its attributes tell them, or None if one is unknown."""
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(module)).parameters.items():
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue
        if name == "dtype":
            tensors = [t for t in module.parameters() if t.is_floating_point()]
            if tensors and tensors[0].dtype != torch.float32:
                arguments[name] = tensors[0].dtype
        elif name in module._parameters:
            arguments[name] = module._parameters[name] is not None
        elif name != "device" and hasattr(module, name):
            arguments[name] = getattr(module, name)
        elif parameter.default is inspect.Parameter.empty:
            return None
    return arguments


def _engine_arguments_of(module: nn.Module) -> dict[str, Any] | None:
    wrapped, arguments = engine_arguments(module)
    if wrapped is None:
        return arguments
    found = _arguments_of(wrapped)
    taken = inspect.signature(type(module)).parameters
    passes_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values())
    if found is None or passes_on:
        return found
    return {name: value for name, value in found.items() if name in taken}


def _shortened(module: nn.Module, given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments without those that change nothing, and (3, 3) as 3 where that is the same."""
    short = dict(given)
    for name in given:
        without = {key: value for key, value in short.items() if key != name}
        if name not in _positional_of(type(module)) and _gives_back(module, without):
            short = without
            continue
        value = short[name]
        if isinstance(value, tuple) and len(value) > 0 and len(set(value)) == 1:
            scalar = short | {name: value[0]}
            short = scalar if _gives_back(module, scalar) else short
    return short


def _positional_of(module_type: type[nn.Module]) -> list[str]:
    """Return the parameters that are written without a name: those without default, but kernel_size."""
    return [
        name
        for name, parameter in inspect.signature(module_type).parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        and name != "kernel_size"
    ]


def _gives_back(module: nn.Module, arguments: dict[str, Any]) -> bool:
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return is_same_module(module, type(module)(**arguments))
    except REFUSALS:
        return False


def _tensors_of(module: nn.Module) -> list[tuple[Any, ...]]:
    stored = [*module._parameters.items(), *module._buffers.items()]
    described = [
        (name, None if t is None else (type(t), tuple(t.shape), t.dtype, t.requires_grad))
        for name, t in stored
    ]
    return [*described, sorted(module._non_persistent_buffers_set)]  # type: ignore[list-item]


def _is_equal(value: Any, other: Any) -> bool:
    if value is other:
        return True
    if type(value) is not type(other):
        return False
    if isinstance(value, tuple | list):
        pairs = zip(value, other, strict=False)
        return len(value) == len(other) and all(_is_equal(a, b) for a, b in pairs)
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(_is_equal(value[k], other[k]) for k in value)
    if isinstance(value, bool | int | float | str | set | torch.dtype | torch.device):
        return bool(value == other)
    return is_same_part(value, other)


def _refuse_node(node: fx.Node) -> Argument:
    raise AssertionError(f"a module has the fx node {node} as an attribute")
