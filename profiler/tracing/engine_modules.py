"""The constructor arguments of MinkowskiEngine's modules, as their attributes tell them."""

from typing import Any

from torch import nn

WRAPPED = ("bn", "linear", "module")
"""Where the engine's modules keep the module of torch.nn that they apply to the features."""


def engine_arguments(module: nn.Module) -> tuple[nn.Module | None, dict[str, Any]]:
    """Return the module of torch.nn that one of the engine's applies to features, if any, and arguments.

    The arguments are those that the engine's module has beside the wrapped one's; whether a call with them
    gives the module back is the caller's to check.
    """
    wrapped = next((module._modules[name] for name in WRAPPED if name in module._modules), None)
    if wrapped is not None:
        return wrapped, {}
    generator = getattr(module, "kernel_generator", None)
    if generator is None:
        return None, {}
    arguments: dict[str, Any] = {
        name: getattr(module, name)
        for name in ("in_channels", "out_channels")
        if hasattr(module, name)
    }
    arguments |= {
        "kernel_size": _short(generator.kernel_size),
        "stride": _short(generator.kernel_stride),
        "dilation": _short(generator.kernel_dilation),
        "dimension": generator.dimension,
    }
    if "bias" in module._parameters:
        arguments["bias"] = module._parameters["bias"] is not None
    if generator.expand_coordinates:
        arguments["expand_coordinates"] = True
    return None, arguments


def is_same_part(value: Any, other: Any) -> bool:
    """Return whether two attributes of the engine's own types are the same: enumerations and kernels."""
    kind = type(value)
    if kind is not type(other):
        return False
    if kind.__module__ == "MinkowskiKernelGenerator":
        names = [name for name in kind.__slots__ if name != "cache"]
        return all(_is_equal(getattr(value, name), getattr(other, name)) for name in names)
    return kind.__module__ == "MinkowskiEngineBackend._C" and bool(value == other)


def _is_equal(value: Any, other: Any) -> bool:
    if hasattr(value, "numel"):
        return bool(value.shape == other.shape and (value == other).all())
    return bool(value == other)


def _short(sizes: Any) -> Any:
    """Return one number where all axes have the same."""
    sizes = [int(size) for size in sizes]
    return sizes[0] if len(set(sizes)) == 1 else sizes
