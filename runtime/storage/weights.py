"""Weights: initial tensors go from rank 0 to the ranks that hold them, the trained ones come back.

Entries of the original's state dict that no stage holds (modules that forward never calls) stay on rank 0,
which writes them beside the trained ones, so that a file of weights loads strictly into the original.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import nn

from stagewright.document import InputError, write_atomically
from stagewright.runtime.execution.replicas import buffers_of, parameters_of
from stagewright.runtime.ranks.faults import waiting_for

OWN_BUFFER = "stage_device"
"""An empty buffer by which a generated stage without inputs knows its device; the original has none."""


Tied = tuple[tuple[str, ...], ...]
"""Groups of names in the original's state dict that are one tensor."""
Entry = TypeVar("Entry")


def tensors_of_stages(modules: list[nn.Module]) -> dict[str, torch.Tensor]:
    """Return all parameters and buffers of a rank's stages by original name."""
    return {name: p.detach() for name, p in parameters_of(modules).items()} | {
        name: buffer for name, buffer in buffers_of(modules).items() if name != OWN_BUFFER
    }


def state_of_stages(modules: list[nn.Module]) -> dict[str, torch.Tensor]:
    """Return a rank's part of the original model's state dict: no buffers that it leaves out."""
    return {
        name: tensor
        for module in modules
        for name, tensor in module.state_dict().items()
        if isinstance(tensor, torch.Tensor)
    }


def spread_initial_weights(
    held: Mapping[str, torch.Tensor],
    build: Callable[[], nn.Module],
    control: dist.ProcessGroup | None,
    tied: Tied = (),
) -> dict[str, torch.Tensor]:
    """Fill every rank's tensors from the model that rank 0 builds; return what no rank holds.

    Rank 0 holds the whole model in its host memory meanwhile; no other rank does.

    Args:
        held: this rank's tensors by original name; they are overwritten.
        build: builds the original model; called on rank 0 only.
        control: a gloo group of all ranks; None on one rank.
        tied: groups of original names that are one tensor.

    Returns:
        On rank 0 the entries of the original's state dict that no rank holds under any name; else nothing.

    Raises:
        InputError: the model has no tensor of a name, or one of another shape: the plan is of another model.
    """
    wanted = _held_by_all(held, control)
    rank = dist.get_rank() if control is not None else 0
    models = [build()] if rank == 0 else []
    source = tensors_of_stages(models)
    left_out = _left_out(state_of_stages(models), wanted, tied)
    problem: list[str | None] = [None]
    if rank == 0:
        problem[0] = next((text for names in wanted for text in _differences(names, source)), None)
    if control is not None:
        with waiting_for("rank 0 to build the model"):
            dist.broadcast_object_list(problem, src=0, group=control)
    if problem[0] is not None:
        raise InputError(problem[0])
    with waiting_for("the initial weights"):
        if rank == 0:
            for name, tensor in held.items():
                tensor.copy_(source[name])
            for receiver in range(1, len(wanted)):
                for name in sorted(wanted[receiver]):
                    dist.send(source[name].contiguous(), receiver, group=control)
        else:
            for name in sorted(held):
                buffer = torch.empty(held[name].shape, dtype=held[name].dtype)
                dist.recv(buffer, 0, group=control)
                held[name].copy_(buffer)
    return left_out


def load_weights(
    held: Mapping[str, torch.Tensor],
    path: Path,
    control: dist.ProcessGroup | None,
    tied: Tied = (),
) -> dict[str, torch.Tensor]:
    """Fill a rank's tensors from a safetensors file of the whole model; return what no rank holds.

    A rank reads its own tensors only, rank 0 also those that no rank holds. A tensor with several names
    (tied) may stand in the file under any of them. Arguments and result as in `spread_initial_weights`.

    Raises:
        InputError: the file is not readable, lacks a parameter, or has one of another shape.
    """
    wanted = _held_by_all(held, control)
    names_of = {name: group for group in tied for name in group}
    try:
        with safe_open(path, framework="pt") as file:
            names = dict.fromkeys(file.keys())
            for name, tensor in held.items():
                stored = next((n for n in (name, *names_of.get(name, ())) if n in names), None)
                if stored is None:
                    raise InputError(
                        f"{path}: has no tensor {name!r}; give weights of the planned model"
                    )
                found = file.get_tensor(stored)
                if found.shape != tensor.shape:
                    raise InputError(
                        f"{path}: {name!r} has shape {tuple(found.shape)}, expected {tuple(tensor.shape)}"
                    )
                tensor.copy_(found)
            if control is not None and dist.get_rank() != 0:
                return {}
            return {name: file.get_tensor(name) for name in _left_out(names, wanted, tied)}
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
    with waiting_for("the names of the trained weights"):
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


def with_tied_names(tensors: Mapping[str, torch.Tensor], tied: Tied) -> dict[str, torch.Tensor]:
    """Return tensors under each of their names in the original model."""
    named = dict(tensors)
    for group in tied:
        found = [tensors[name] for name in group if name in tensors]
        named |= {name: found[0] for name in group if found}
    return named


def _held_by_all(
    held: Mapping[str, torch.Tensor], control: dist.ProcessGroup | None
) -> list[dict[str, tuple[int, ...]]]:
    """Return for each rank the names and shapes of what it holds."""
    own = {name: tuple(tensor.shape) for name, tensor in held.items()}
    if control is None:
        return [own]
    everyone: list[dict[str, tuple[int, ...]]] = [{} for _ in range(dist.get_world_size())]
    with waiting_for("all ranks to build their stages"):
        dist.all_gather_object(everyone, own, group=control)
    return everyone


def _left_out(
    state: Mapping[str, Entry], wanted: Iterable[Collection[str]], tied: Tied
) -> dict[str, Entry]:
    """Return the entries of a state dict that no rank holds under any name."""
    held = {name for names in wanted for name in names}
    covered = held.union(*(group for group in tied if not held.isdisjoint(group)))
    return {name: entry for name, entry in state.items() if name not in covered}


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
