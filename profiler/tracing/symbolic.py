"""Tracing with torch.fx: a model becomes a graph of calls, and what cannot be traced is named by line."""

import functools
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx, nn

from stagewright.document import InputError

from .granularity import IsLayer
from .voxels import engine_functions, engine_modules

FACTORIES: tuple[Callable[..., Any], ...] = (
    torch.arange, torch.zeros, torch.ones, torch.full, torch.empty, torch.tensor, torch.linspace,
    torch.eye, torch.rand, torch.randn, torch.randint,
)  # fmt: skip
"""Functions that take no tensor; fx must watch for them, or a size of the input in a call is an error."""
SOURCE = "stagewright_source"
"""Key in a node's meta: the user's file and line."""
REWRITE = (
    "write it without Python control flow on tensors, their values or their sizes (torch.where, or numbers "
    "from the constructor), or put it into an nn.Module whose class has stagewright_layer = True: that "
    "module is one layer then"
)
_FOREIGN = (
    str(Path(torch.__file__).parent),
    str(Path(__file__).parent),
    str(Path(__file__).resolve().parent),
)
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")


class LayerTracer(fx.Tracer):
    """Makes one node of every layer: modules without parts of their own, functions, methods, attributes."""

    proxy_buffer_attributes = True

    def __init__(
        self, positional: Sequence[str], keywords: Sequence[str], is_layer: IsLayer
    ) -> None:
        super().__init__(autowrap_functions=(*FACTORIES, *engine_functions()))
        self._autowrap_search += [torch, *engine_modules()]
        self._is_layer = is_layer
        self._positional = positional
        self._keywords = keywords
        self._is_autocast = _is_autocast()
        """Around the whole model, as `--autocast` asks for."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._is_layer(m, module_qualified_name)

    def create_args_for_root(
        self,
        root_fn: Callable[..., Any],
        is_module: bool,
        concrete_args: dict[str, Any] | tuple[Any, ...] | None = None,
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Return the call of the model with a placeholder for each input that the example has.

        So a parameter of forward that the example leaves out keeps its default.
        """
        places = [self.create_proxy("placeholder", name, (), {}) for name in self._positional]
        named = {name: self.create_proxy("placeholder", name, (), {}) for name in self._keywords}
        assert isinstance(self.root, nn.Module)
        return functools.partial(root_fn, **named), [self.root, *places]

    def create_node(self, *arguments: Any, **options: Any) -> fx.Node:
        node = super().create_node(*arguments, **options)
        place = _place_of_frame(sys._getframe(1))
        demand_no_transform(node, place)
        if not torch.is_grad_enabled() or _is_autocast() != self._is_autocast:
            raise InputError(
                f"{place}: a part of the forward is under no_grad or autocast, which a trace does not hold; "
                "use detach(), or put it into an nn.Module whose class has stagewright_layer = True"
            )
        node.meta[SOURCE] = place
        return node


def _is_autocast() -> bool:
    return any(map(torch.is_autocast_enabled, ("cpu", "cuda")))


def trace_calls(model: nn.Module, inputs: Mapping[int | str, Any], is_layer: IsLayer) -> fx.Graph:
    """Return the fx graph of a model; its placeholders are in the order of the inputs.

    Raises:
        InputError: the model cannot be traced; the message has the user's file and line.
    """
    keywords = [key for key in inputs if isinstance(key, str)]
    names = _positional_names(model, len(inputs) - len(keywords), keywords)
    tracer = LayerTracer(names, keywords, is_layer)
    if tracer.is_leaf_module(model, ""):
        raise InputError(
            f"the model is a single {type(model).__name__}, which is one layer; "
            "wrap it in nn.Sequential, and build what has several layers of smaller modules"
        )
    try:
        with torch.enable_grad():
            return tracer.trace(model)
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error).split('. ')[0]}"
        raise InputError(
            f"{place_of_error(error)}: cannot be traced: {reason}; {REWRITE}"
        ) from error


def _positional_names(model: nn.Module, count: int, keywords: Sequence[str]) -> list[str]:
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*range(count), **dict.fromkeys(keywords))
    except TypeError as error:
        raise InputError(
            f"{type(model).__name__}.forward{signature} does not take the example input, {count} positional "
            f"values and the keywords {list(keywords)}: {error}; correct example_input"
        ) from None
    names: list[str] = []
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{name}_{i}" for i in range(len(value))]
        elif kind is not inspect.Parameter.VAR_KEYWORD and name not in keywords:
            names.append(name)
    return names


def demand_no_transform(node: fx.Node, place: str) -> None:
    """Raise InputError if a node enters or leaves a transform of torch.func."""
    if "functorch" in str(getattr(node.target, "__module__", "")):
        raise InputError(
            f"{place}: a transform of torch.func (vmap, grad) is used, which a trace does not hold; put it "
            "into an nn.Module whose class has stagewright_layer = True"
        )


def first_line(error: BaseException) -> str:
    """Return what an error says, in one line."""
    return (str(error).strip().splitlines() or ["no message"])[0]


def place_of_error(error: BaseException) -> str:
    """Return file:line of the innermost frame of an error that is the user's code."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if is_users(frame.filename):
            return f"{frame.filename}:{frame.lineno}"
    return "the model"


def place_of_node(node: fx.Node) -> str:
    """Return file:line of the user's code that a node was traced from."""
    return str(node.meta.get(SOURCE, "the model"))


def _place_of_frame(frame: FrameType | None) -> str:
    """Return the user's line that made a call; above the trace nothing is the model's."""
    while frame is not None and frame.f_code is not trace_calls.__code__:
        if is_users(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return "the model"


def is_users(filename: str) -> bool:
    """Return whether a file is of the user's code or of a library of models, not of torch or Python."""
    if filename.startswith(("<", *_FOREIGN)):
        return False
    return "site-packages" in filename or not filename.startswith(_STANDARD_LIBRARY)
