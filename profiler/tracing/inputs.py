"""The task's example input as the model takes it: by position or keyword, on its device, in its dtype."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from stagewright.document import InputError
from stagewright.task import Task

from .observe import tensors_in


def inputs_of(task: Task, batch_size: int, model: nn.Module) -> dict[int | str, Any]:
    """Return the task's example input by position or keyword; positions come first.

    Raises:
        InputError: example_input fails, or returns no tensor, and no tuple or dict with one.
    """
    example = task.call("example_input", batch_size)
    found = type(example).__name__
    if isinstance(example, torch.Tensor):
        example = (example,)
    if isinstance(example, tuple | list):
        example = dict(enumerate(example))
    if not isinstance(example, dict) or not any(True for _ in tensors_in(example)):
        raise InputError(
            f"task {task.name}: example_input({batch_size}) returns a {found}, expected a "
            "tensor, or a tuple or a dict with tensors"
        )
    return {key: moved(value, model) for key, value in example.items()}


def called(model: nn.Module, inputs: Mapping[int | str, Any]) -> Any:
    """Return what a model makes of inputs by position or keyword."""
    positional = [value for key, value in inputs.items() if isinstance(key, int)]
    keywords = {key: value for key, value in inputs.items() if isinstance(key, str)}
    return model(*positional, **keywords)


def copied(inputs: Mapping[int | str, Any]) -> dict[int | str, Any]:
    """Return inputs with copies of their tensors: a model may change what it gets in place."""
    return pytree.tree_map_only(torch.Tensor, torch.clone, dict(inputs))  # type: ignore[no-any-return]


def moved(value: Any, model: nn.Module) -> Any:
    """Return a value with its tensors on the model's device, floating-point ones in the model's dtype."""
    if isinstance(value, torch.Tensor):
        like = next((p for p in model.parameters() if p.is_floating_point()), None)
        if like is None:
            return value
        return value.to(like.device, like.dtype if value.is_floating_point() else None)
    if type(value) in (tuple, list):
        return type(value)(moved(item, model) for item in value)
    if isinstance(value, dict):
        return {key: moved(item, model) for key, item in value.items()}
    return value
