"""MinkowskiEngine in a trace: its modules are layers, its functions are traced, its sparse tensors observed.

Sparse tensors made from one another share a coordinate manager, which holds the coordinate map of every
level. A transposed layer returns to a map that it finds in there: a value that it needs and does not take.
`link_maps` makes it take that value (`up(x, coordinates=skip)`, the same call to the engine), so that a cut
before it sends what it needs.

The engine is known only where the user's model has imported it.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import fx, nn

COORDINATES = "coordinates"
"""The engine's keyword for the value whose coordinates a layer returns to."""


@dataclass
class SparseValue:
    """What was observed of a sparse tensor; stands for it where no values are needed."""

    F: torch.Tensor
    """Its features on the meta device."""
    manager: object
    key: tuple[tuple[int, ...], str]
    """Tensor stride and name of its coordinate map, unique in the manager."""
    coordinate_size: int
    """1 for the sample and the number of dimensions."""
    map_layer: str = ""
    """The layer that made the coordinate map."""
    manager_layer: str = ""
    """The layer that made the manager."""

    @property
    def D(self) -> int:
        return self.coordinate_size - 1

    @property
    def tensor_stride(self) -> list[int]:
        return list(self.key[0])


def engine() -> ModuleType | None:
    """Return MinkowskiEngine if something has imported it."""
    return sys.modules.get("MinkowskiEngine")


def is_sparse(value: Any) -> bool:
    """Return whether a value is a sparse tensor of the engine."""
    found = engine()
    return found is not None and isinstance(value, found.SparseTensor)


def observed(value: Any) -> SparseValue:
    """Return what there is to know of a sparse tensor without its values."""
    features = value.F
    stride, name = value.coordinate_map_key.get_key()
    return SparseValue(
        F=torch.empty_like(features, device="meta").requires_grad_(features.requires_grad),
        manager=value.coordinate_manager,
        key=(tuple(stride), name),
        coordinate_size=value.D + 1,
    )


def is_engine_layer(module: nn.Module) -> bool:
    """Return whether a module is one of the engine's layers, not one of its ready-made blocks."""
    home = type(module).__module__
    return home.startswith("Minkowski") and not home.startswith("MinkowskiEngine.modules")


def engine_modules() -> tuple[ModuleType, ...]:
    """Return where the engine's functions are: those of sparse tensors and the layers as functions."""
    found = engine()
    return () if found is None else (found, found.MinkowskiFunctional)


def engine_functions() -> tuple[Callable[..., Any], ...]:
    """Return the functions that a trace must watch for, as they refuse what stands for a tensor in it."""
    return tuple(
        function
        for module in engine_modules()
        for _, function in sorted(inspect.getmembers(module, inspect.isfunction))
        if function.__module__ in ("MinkowskiOps", "MinkowskiFunctional")
    )


def engine_function_name(function: Callable[..., Any]) -> str | None:
    """Return the name that an engine's function is imported by; None: it is none."""
    for module in engine_modules():
        name = getattr(function, "__name__", "")
        if name and getattr(module, name, None) is function:
            prefix = "" if module is engine() else "MinkowskiEngine."
            return f"{prefix}{module.__name__}.{name}"
    return None


def name_maps(values: Mapping[fx.Node, Any], names: Mapping[fx.Node, str]) -> None:
    """Write into sparse values which layers made their maps and managers: the first in order with them."""
    maps: dict[tuple[int, Any], str] = {}
    managers: dict[int, str] = {}
    for node, value in values.items():
        if isinstance(value, SparseValue):
            manager = id(value.manager)
            value.manager_layer = managers.setdefault(manager, names[node])
            value.map_layer = maps.setdefault((manager, value.key), names[node])


def link_maps(model: nn.Module, graph: fx.Graph, values: Mapping[fx.Node, Any]) -> bool:
    """Let each layer take the value whose coordinates it returns to; return whether there was any.

    That value is the last one before the layer that a layer behind it takes as well (a skip), or the last.
    """
    nodes = list(graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    is_changed = False
    for node in nodes:
        if not _returns_to_a_map(model, node):
            continue
        value = values[node]
        earlier = [other for other in nodes[: place[node]] if _is_of_map(values.get(other), value)]
        if not earlier:
            continue
        kept = [o for o in earlier if any(place[user] > place[node] for user in o.users)]
        node.kwargs = {**node.kwargs, COORDINATES: (kept or earlier)[-1]}
        is_changed = True
    return is_changed


def _returns_to_a_map(model: nn.Module, node: fx.Node) -> bool:
    """Whether a call is of a transposed layer that was given no coordinates and makes none of its own."""
    if node.op != "call_module" or len(node.args) > 1 or COORDINATES in node.kwargs:
        return False
    module = model.get_submodule(str(node.target))
    generator = getattr(module, "kernel_generator", None)
    return (
        is_engine_layer(module)
        and bool(getattr(module, "is_transpose", False))
        and not getattr(generator, "expand_coordinates", True)
    )


def _is_of_map(value: Any, wanted: SparseValue) -> bool:
    return (
        isinstance(value, SparseValue)
        and value.manager is wanted.manager
        and value.key == wanted.key
    )
