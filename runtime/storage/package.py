"""The generated package: loads its plan and its stage modules, and makes a stage real on a device."""

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakIdKeyDictionary

from stagewright.document import InputError, read_bytes
from stagewright.plan import Plan
from stagewright.task import Task


@dataclass(frozen=True)
class StagePackage:
    """A directory that the code generator wrote. Its stage files are code: run only what you trust."""

    directory: Path
    plan: Plan
    plan_sha256: str
    module: ModuleType

    @property
    def tied(self) -> tuple[tuple[str, ...], ...]:
        """Groups of original names that are one parameter."""
        return self.module.TIED  # type: ignore[no-any-return]

    def stage_class(self, index: int) -> Any:
        return self.module.STAGES[index]


def load_package(directory: Path) -> StagePackage:
    """Import a generated package.

    Raises:
        InputError: a file is missing, plan.json is not the plan that the stages were generated from, or not
            one for training.
    """
    plan_path = directory / "plan.json"
    if not plan_path.is_file():
        raise InputError(
            f"{directory}: holds no plan.json; name a directory that stagewright generate wrote"
        )
    plan = Plan.load(plan_path)
    if plan.is_inference:
        raise InputError(
            f"{plan_path}: is a plan for inference (schedule {plan.schedule!r}), which cannot train; plan "
            "without --inference"
        )
    for name in ("__init__.py", *(f"stage{index}.py" for index in range(len(plan.stages)))):
        if not (directory / name).is_file():
            raise InputError(f"{directory / name}: is missing; run stagewright generate again")
    digest = hashlib.sha256(read_bytes(plan_path)).hexdigest()
    module = _import_package(directory)
    if digest != module.PLAN_SHA256:
        raise InputError(
            f"{plan_path}: its SHA-256 is {digest[:12]}, but the stages were generated from "
            f"{module.PLAN_SHA256[:12]}; run stagewright generate again after changing a plan"
        )
    return StagePackage(directory, plan, digest, module)


def _import_package(directory: Path) -> ModuleType:
    path = directory.resolve()
    name = f"stagewright_generated_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    for known in [known for known in sys.modules if known == name or known.startswith(f"{name}.")]:
        del sys.modules[known]
    spec = importlib.util.spec_from_file_location(
        name, path / "__init__.py", submodule_search_locations=[str(path)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError, AttributeError, NameError) as error:
        raise InputError(
            f"{directory}: cannot be imported: {error}; run stagewright generate again"
        ) from error
    return module


def make_stage(
    package: StagePackage,
    index: int,
    original: Callable[[], nn.Module],
    dtype: torch.dtype,
    device: torch.device,
) -> nn.Module:
    """Return a stage with uninitialised parameters and buffers, in a dtype, on a device.

    It is built on the meta device, so that no rank ever holds more than its own stages; original builds the
    user's model there, for the modules that no constructor call rebuilds.
    """
    stage_class = package.stage_class(index)
    with torch.device("meta"), _parameters_on_meta():
        stage: nn.Module = stage_class(original() if stage_class.needs_original else None)
    made: dict[int, torch.Tensor] = {}

    def real(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            target = dtype if tensor.is_floating_point() else tensor.dtype
            empty = torch.empty_like(tensor, dtype=target, device=device)
            if isinstance(tensor, nn.Parameter):
                empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
            made[id(tensor)] = empty
        return made[id(tensor)]

    keep_alive = []
    for module in stage.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    keep_alive.append(tensor)
                    tensors[name] = real(tensor)  # type: ignore[assignment]
    return stage


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Take parameters to the meta device that modules make in memory all the same, as MinkowskiEngine's do.

    That is when a module registers one, before it writes initial values: the memory is not touched.
    """
    known: MutableMapping[nn.Parameter, nn.Parameter] = WeakIdKeyDictionary()

    def moved(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None
        if parameter not in known:
            known[parameter] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        return known[parameter]

    handle = register_module_parameter_registration_hook(moved)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def share_tensors(modules: Iterable[nn.Module], tied: Iterable[tuple[str, ...]]) -> None:
    """Make one tensor of what several stages of one rank hold under one name, or under tied ones."""
    canonical = {name: group[0] for group in tied for name in group}
    first: dict[str, torch.Tensor] = {}
    for stage in modules:
        for prefix, module in stage.named_modules(remove_duplicate=False):
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        path = f"{prefix}.{name}" if prefix else name
                        shared = first.setdefault(canonical.get(path, path), tensor)
                        tensors[name] = shared


def build_original(task: Task, factory: str) -> nn.Module:
    """Return the user's model from the factory that the plan names, in training mode.

    Raises:
        InputError: the factory fails or returns something else.
    """
    model = task.call(factory)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"task {task.name}: {factory}() returned a {type(model).__name__}, expected nn.Module"
        )
    return model
