"""Models as tasks, traced."""

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from stagewright.profiler.tracing.trace import TracedModel, Tracing, trace
from stagewright.task import Task


def task_of(build: Callable[[], nn.Module], example_input: Callable[[int], Any]) -> Task:
    module = types.ModuleType("task_under_test")
    module.build = build  # type: ignore[attr-defined]
    module.example_input = example_input  # type: ignore[attr-defined]
    return Task(name="task_under_test", factory="build", module=module)


def traced(model: nn.Module, *shape: int, how: Tracing | None = None) -> TracedModel:
    task = task_of(lambda: model, lambda size: torch.randn(size, *shape))
    return trace(task, model, how=how or Tracing())
