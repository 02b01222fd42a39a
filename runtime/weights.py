"""Weights: initial tensors go from rank 0 to the ranks that hold them, the trained ones come back."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import nn

from stagewright.document import InputError, write_atomically

from .faults import waiting_for
from .replicas import buffers_of, parameters_of

OWN_BUFFER = "stage_device"
"""An empty buffer by which a generated stage without inputs knows its device; the original has none."""


def tensors_of_stages(modules: list[nn.Module]) -> dict[str, torch.Tensor]:
    """Return all parameters and buffers of a rank's stages by original name."""
    return {name: p.detach() for name, p in parameters_of(modules).items()} | {
        name: buffer for name, buffer in buffers_of(modules).items() if name != OWN_BUFFER
    }


def state_of_stages(modules: list[nn.Module]) -> dict[str, torch.Tensor]:
    """Return a rank's part of the original model's state dict: no buffers that it leaves out."""
    return {name: tensor for module in modules for name, tensor in module.state_dict().items()}


def spread_initial_weights(
    held: Mapping[str, torch.Tensor],
    build: Callable[[], nn.Module],
    control: dist.ProcessGroup | None,
) -> None:
    """Fill every rank's tensors from the model that rank 0 builds.

    Rank 0 holds the whole model in its host memory meanwhile; no other rank does.

    Args:
        held: this rank's tensors by original name; they are overwritten.
        build: builds the original model; called on rank 0 only.
        control: a gloo group of all ranks; None on one rank.

    Raises:
        InputError: the model has no tensor of a name, or one of another shape: the plan is of another model.
    """
    if control is None:
        _fill(held, tensors_of_stages([build()]))
        return
    rank = dist.get_rank()
    wanted: list[dict[str, tuple[int, ...]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(wanted, {n: tuple(t.shape) for n, t in held.items()}, group=control)
    source = tensors_of_stages([build()]) if rank == 0 else {}
    problem: list[str | None] = [None]
    if rank == 0:
        problem[0] = next((text for names in wanted for text in _differences(names, source)), None)
    dist.broadcast_object_list(problem, src=0, group=control)
    if problem[0] is not None:
        raise InputError(problem[0])
    with waiting_for("the initial weights"):
        if rank == 0:
            _fill(held, source)
            for receiver in range(1, dist.get_world_size()):
                for name in sorted(wanted[receiver]):
                    dist.send(source[name].contiguous(), receiver, group=control)
        else:
            for name in sorted(held):
                buffer = torch.empty(held[name].shape, dtype=held[name].dtype)
                dist.recv(buffer, 0, group=control)
                held[name].copy_(buffer)


def load_weights(held: Mapping[str, torch.Tensor], path: Path) -> None:
    """Fill a rank's tensors from a safetensors file of the whole model; it reads no others.

    Raises:
        InputError: the file is not readable, lacks a parameter, or has one of another shape.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name, tensor in held.items():
                if name not in names:
                    raise InputError(
                        f"{path}: has no tensor {name!r}; give weights of the planned model"
                    )
                found = file.get_tensor(name)
                if found.shape != tensor.shape:
                    raise InputError(
                        f"{path}: {name!r} has shape {tuple(found.shape)}, expected {tuple(tensor.shape)}"
                    )
                tensor.copy_(found)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: is no readable safetensors file: {error}") from None


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors as a safetensors file, whole or not at all."""
    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, safetensors.torch.save(own, dict(metadata)))


def gather_weights(
    held: Mapping[str, torch.Tensor], control: dist.ProcessGroup | None
) -> dict[str, torch.Tensor] | None:
    """Return all tensors of the model on rank 0, None elsewhere; the lowest holder sends each."""
    if control is None:
        return {name: tensor.detach().cpu() for name, tensor in held.items()}
    rank = dist.get_rank()
    everyone: list[dict[str, tuple[Any, ...]]] = [{} for _ in range(dist.get_world_size())]
    described = {n: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in held.items()}
    dist.all_gather_object(everyone, described, group=control)
    owner = {name: r for r in reversed(range(len(everyone))) for name in everyone[r]}
    gathered = {}
    with waiting_for("the trained weights"):
        for name in sorted(owner):
            if owner[name] == rank and rank != 0:
                dist.send(held[name].detach().cpu().contiguous(), 0, group=control)
            elif rank == 0 and owner[name] == 0:
                gathered[name] = held[name].detach().cpu()
            elif rank == 0:
                shape, dtype = everyone[owner[name]][name]
                gathered[name] = torch.empty(shape, dtype=getattr(torch, dtype))
                dist.recv(gathered[name], owner[name], group=control)
    return gathered if rank == 0 else None


def _fill(held: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor]) -> None:
    differences = _differences({n: tuple(t.shape) for n, t in held.items()}, source)
    if differences:
        raise InputError(differences[0])
    for name, tensor in held.items():
        tensor.copy_(source[name])


def _differences(
    names: Mapping[str, tuple[int, ...]], source: Mapping[str, torch.Tensor]
) -> list[str]:
    """Return what is wrong with a model that should have tensors of these names and shapes."""
    return [
        f"the task's model has {tuple(source[name].shape) if name in source else 'nothing'} as {name!r}, "
        f"but the plan was made for a model with {shape} there; profile, plan and generate again"
        for name, shape in sorted(names.items())
        if name not in source or tuple(source[name].shape) != shape
    ]
