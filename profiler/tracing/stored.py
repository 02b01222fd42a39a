"""The parameters and buffers of layers, by their names in the original model's state dict."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from stagewright.graph import StoredTensor

from .describe import stored_spec


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What one layer holds."""

    parameters: tuple[StoredTensor, ...] = ()
    buffers: tuple[StoredTensor, ...] = ()
    parameter_bytes: int = 0
    """Of distinct parameters: one that has two names in the layer counts once."""
    buffer_bytes: int = 0


def stored_in_module(model: nn.Module, path: str) -> Stored:
    """Return what the module at a path holds, parts of it included."""
    module = model.get_submodule(path)
    return _stored(
        model,
        dict(module.named_parameters(path, remove_duplicate=False)),
        dict(module.named_buffers(path, remove_duplicate=False)),
    )


def stored_at(model: nn.Module, name: str) -> Stored:
    """Return the one parameter or buffer of this name."""
    path, _, attribute = name.rpartition(".")
    tensor = getattr(model.get_submodule(path), attribute)
    is_parameter = isinstance(tensor, nn.Parameter)
    return _stored(
        model, {name: tensor} if is_parameter else {}, {} if is_parameter else {name: tensor}
    )


def tied_names(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Return the groups of state-dict names that are one parameter or one buffer, in the model's order."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if _is_persistent(model, name):
            groups.setdefault(id(buffer), []).append(name)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def total_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the elements of distinct tensors."""
    distinct = {id(tensor): tensor for tensor in tensors}
    return sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())


def _stored(
    model: nn.Module, parameters: dict[str, nn.Parameter], buffers: dict[str, torch.Tensor]
) -> Stored:
    return Stored(
        parameters=tuple(
            StoredTensor(name=name, spec=stored_spec(tensor)) for name, tensor in parameters.items()
        ),
        buffers=tuple(
            StoredTensor(
                name=name, spec=stored_spec(tensor), persistent=_is_persistent(model, name)
            )
            for name, tensor in buffers.items()
        ),
        parameter_bytes=total_bytes(parameters.values()),
        buffer_bytes=total_bytes(buffers.values()),
    )


def _is_persistent(model: nn.Module, name: str) -> bool:
    path, _, attribute = name.rpartition(".")
    return attribute not in model.get_submodule(path)._non_persistent_buffers_set
