"""What is one layer: a module without parts, or as coarse as the user wants it."""

from collections.abc import Callable
from fnmatch import fnmatchcase

from torch import nn

from stagewright.document import InputError

from .voxels import is_engine_layer

IsLayer = Callable[[nn.Module, str], bool]
"""Whether a module at a path of the model is one layer."""


def layer_rule(model: nn.Module, granularity: str) -> IsLayer:
    """Return what makes a module one layer.

    Args:
        granularity: "leaf": the modules of torch.nn; "block": each member of a ModuleList or Sequential too;
            else a pattern of paths ("encoder.layer.*"): the modules there too.

    Raises:
        InputError: no module's path matches the pattern.
    """
    wanted = _wanted(model, granularity)

    def is_layer(module: nn.Module, path: str) -> bool:
        if getattr(type(module), "stagewright_layer", False) or path in wanted:
            return True
        if is_engine_layer(module):
            return True
        is_container = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        return type(module).__module__.startswith("torch.nn") and not is_container

    return is_layer


def _wanted(model: nn.Module, granularity: str) -> frozenset[str]:
    if granularity == "leaf":
        return frozenset()
    paths = [path for path, _ in model.named_modules() if path]
    if granularity == "block":
        lists = {
            p for p, m in model.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential)
        }
        return frozenset(path for path in paths if path.rpartition(".")[0] in lists)
    found = frozenset(path for path in paths if fnmatchcase(path, granularity))
    if not found:
        raise InputError(
            f"--granularity is {granularity!r}, expected leaf, block, or a pattern of modules' paths as in "
            f"{paths[0] if paths else 'body.*'!r}"
        )
    return found
