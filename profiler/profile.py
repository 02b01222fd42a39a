"""Profiling: a task becomes a layer graph with the costs measured on one device."""

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from stagewright.document import InputError
from stagewright.graph import Emulation, LayerGraph, ModelIdentity
from stagewright.task import Task
from stagewright.value import AUTOCAST_DTYPES

from .measuring.measure import Repeats, measure
from .measuring.step import Autocast
from .tracing.trace import Tracing, trace

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to profile on what."""

    device_type: str
    """The name that clusters know the device by."""
    batch_sizes: tuple[int, ...]
    """Micro-batch sizes."""
    device: str = "cpu"
    dtype: str = "float32"
    """Of parameters and inputs."""
    autocast: str | None = None
    """Mixed precision: compute in this dtype what torch.autocast does, over float32 parameters."""
    slowdown: float | None = None
    """Multiplies all times: this device stands for a slower one. None: it stands for itself."""
    seed: int = 0
    tracing: Tracing = field(default_factory=Tracing)
    limits: Repeats = field(default_factory=Repeats)


def profile(
    task: Task,
    request: Request,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> LayerGraph:
    """Return the layers of a task's model with what each costs.

    Raises:
        InputError: a number of the request is out of range, the device is not there or its memory is too
            small, or the model cannot be traced or run.
    """
    batch_sizes, slowdown, device = checked(request)
    torch.manual_seed(request.seed)
    model = task.build()
    if not isinstance(model, torch.nn.Module):
        raise InputError(
            f"task {task.name}: {task.factory} returns a {type(model).__name__}, expected an nn.Module"
        )
    try:
        precision = Autocast(device.type, DTYPES[request.autocast] if request.autocast else None)
        model.to(device, DTYPES[request.dtype])
        with precision.context():
            traced = trace(task, model, how=request.tracing)
        found = measure(traced, task, batch_sizes, request.limits, progress, slowdown, precision)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{request.device}: its memory is too small for the micro-batch sizes {list(batch_sizes)}; "
            "choose smaller ones"
        ) from error
    return LayerGraph(
        model=ModelIdentity(
            task=task.name, factory=task.factory, structure_sha256=traced.structure_sha256
        ),
        device_type=request.device_type,
        device=device_description(device),
        emulation=_emulation(request.slowdown),
        dtype=request.dtype,
        autocast=request.autocast,
        torch_version=str(torch.__version__),
        batch_sizes=batch_sizes,
        layers=tuple(
            layer.replace(
                costs=found.layers[layer.name],
                output=found.outputs.get(layer.name, layer.output),
            )
            for layer in traced.layers
        ),
        output=traced.output,
        tied=traced.tied,
        loss=found.loss,
        whole=found.whole,
        shared_maps=found.shared_maps,
    )


def checked(request: Request) -> tuple[tuple[int, ...], float, torch.device]:
    """Return the micro-batch sizes in order, the factor of all times, and the device.

    Raises:
        InputError: a number of the request is out of range, or the device is not there.
    """
    batch_sizes = tuple(sorted(set(request.batch_sizes)))
    if not batch_sizes or batch_sizes[0] < 1:
        raise InputError(f"micro-batch sizes are {batch_sizes}, expected numbers from 1")
    if len(batch_sizes) < len(request.batch_sizes):
        raise InputError(
            f"micro-batch sizes are {request.batch_sizes}, expected each once; leave out what is there twice"
        )
    _check(request)
    emulation = _emulation(request.slowdown)
    slowdown = 1.0 if emulation is None else emulation.slowdown
    return batch_sizes, slowdown, _device(request.device)


def _check(request: Request) -> None:
    """Raise InputError if something besides the micro-batch sizes and the device is out of its range."""
    if request.limits.repeats < 1:
        raise InputError(f"repeats is {request.limits.repeats}, expected at least 1")
    uncertainty = request.limits.uncertainty
    if uncertainty is not None and not uncertainty > 0:
        raise InputError(f"uncertainty is {uncertainty}, expected a number above 0")
    if not request.limits.max_seconds > 0:
        raise InputError(f"max seconds is {request.limits.max_seconds}, expected a number above 0")
    if not 0 <= request.seed < 2**63:
        raise InputError(f"--seed is {request.seed}, expected an integer from 0 to 2**63 - 1")
    if not request.device_type.strip():
        raise InputError("the device type's name is empty; name it as the cluster files do")
    if request.dtype not in DTYPES:
        raise InputError(f"dtype is {request.dtype!r}, expected one of {', '.join(DTYPES)}")
    if request.autocast and (request.dtype, request.autocast in DTYPES) != ("float32", True):
        raise InputError(
            f"autocast is {request.autocast!r} with parameters in {request.dtype}, expected one of "
            f"{', '.join(AUTOCAST_DTYPES.values())} with parameters in float32"
        )


def device_description(device: torch.device) -> str:
    """Return what a device is, for people: the name of the GPU or of the processor."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    return f"{name}, 1 thread"


def _emulation(slowdown: float | None) -> Emulation | None:
    try:
        return None if slowdown is None else Emulation(slowdown=slowdown)
    except ValueError as error:
        raise InputError(f"--emulate-slowdown: {error}") from None


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "cuda" and (device.index or 0) < torch.cuda.device_count():
        return torch.device("cuda", device.index or 0)
    if name != "cpu":
        raise InputError(
            f"device is {name!r}, expected cpu or one of the {torch.cuda.device_count()} GPUs here (cuda:0)"
        )
    return device
