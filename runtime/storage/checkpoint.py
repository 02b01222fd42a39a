"""Checkpoints: one folder per saved step, written whole or not at all, keyed by original parameter names.

A checkpoint does not depend on the plan: any plan of the same model resumes from it. All ranks must see the
same folder. Its files are safetensors and JSON, so loading one executes nothing and needs no trust.
"""

import re
import shutil
from collections.abc import Container, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open

from stagewright.document import Format, InputError, Record, load_record, save_record
from stagewright.runtime.faults import waiting_for
from stagewright.runtime.world import World

from .weights import save_tensors

CHECKPOINT_FORMAT = Format(name="stagewright.checkpoint", version=1)
_OPTIMIZER_KEY = re.compile(r"optimizer:(?P<state>[^:]*):(?P<name>.*)")
_FOLDER = re.compile(r"step-(\d{8})", re.ASCII)


class Checkpoint(Record):
    """What a checkpoint holds besides its tensors."""

    step: int
    """Steps done."""
    seed: int
    batch_size: int
    """Samples per step; the data order depends on it."""
    optimizer: str
    plan_sha256: str
    """Of the plan that wrote it, for people."""
    files: tuple[str, ...]


def save_checkpoint(
    folder: Path,
    world: World,
    tensors: Mapping[str, torch.Tensor],
    content: Checkpoint,
    keep: int,
) -> Path:
    """Write a checkpoint and delete all but the newest `keep`; every rank calls this at the same time.

    Args:
        folder: where all checkpoints of the run are.
        world: this rank's.
        tensors: what this rank has to save; over all ranks each name once.
        content: the rest; its files are filled in here.
        keep: how many to keep, at least 1.
    """
    name = f"step-{content.step:08d}"
    partial, final = folder / f".{name}.partial", folder / name
    if world.rank == 0 and partial.exists():
        shutil.rmtree(partial)
    _barrier(world)
    if tensors:
        save_tensors(partial / f"rank{world.rank}.safetensors", tensors, {})
    _barrier(world)
    if world.rank == 0:
        files = tuple(sorted(path.name for path in partial.glob("rank*.safetensors")))
        whole = Checkpoint(
            **{f: getattr(content, f) for f in content.__struct_fields__} | {"files": files}
        )
        save_record(partial / "checkpoint.json", CHECKPOINT_FORMAT, whole)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        for old in _complete(folder)[:-keep]:
            shutil.rmtree(old)
    _barrier(world)
    return final


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in a folder."""
    complete = _complete(folder)
    return complete[-1] if complete else None


def load_checkpoint(path: Path) -> Checkpoint:
    return load_record(path / "checkpoint.json", CHECKPOINT_FORMAT, Checkpoint)


def read_tensors(
    path: Path,
    content: Checkpoint,
    wanted: Mapping[str, torch.Tensor],
    trained: Container[str],
    left_out: Container[str] = (),
) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint that one rank needs.

    Args:
        path: the checkpoint's folder.
        content: its checkpoint.json.
        wanted: this rank's parameters and buffers by original name.
        trained: names of parameters whose optimizer state, "optimizer:<state>:<name>", is read too.
        left_out: names of tensors that no stage holds; read where the checkpoint has them.

    Raises:
        InputError: a wanted tensor is missing or has another shape.
    """
    found: dict[str, torch.Tensor] = {}
    for file_name in content.files:
        try:
            with safe_open(path / file_name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - a file handle, not a dict
                    state = _OPTIMIZER_KEY.fullmatch(key)
                    if state["name"] in trained if state else key in wanted or key in left_out:
                        found[key] = file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path / file_name}: is no safetensors file: {error}; resume from another checkpoint"
            ) from None
    for name, tensor in wanted.items():
        if name not in found:
            raise InputError(f"{path}: has no tensor {name!r}; resume with the model that wrote it")
        if found[name].shape != tensor.shape:
            raise InputError(
                f"{path}: {name!r} has shape {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
            )
    return found


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """Return an optimizer's state of some parameters as tensors named "optimizer:<state>:<name>"."""
    return {
        f"optimizer:{key}:{name}": torch.as_tensor(value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
        if value is not None
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Put back what `optimizer_tensors` named, on each parameter's device and in its dtype."""
    for key, tensor in tensors.items():
        match = _OPTIMIZER_KEY.fullmatch(key)
        if match:
            state, parameter = match["state"], parameters[match["name"]]
            same = tensor.shape == parameter.shape and state != "step"
            optimizer.state[parameter][state] = (
                tensor.to(parameter.device, parameter.dtype) if same else tensor
            )


def _complete(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [
        p
        for p in folder.iterdir()
        if _FOLDER.fullmatch(p.name) and (p / "checkpoint.json").is_file()
    ]
    return sorted(found, key=lambda path: path.name)


def _barrier(world: World) -> None:
    if world.control is not None:
        with waiting_for("all ranks to write their part of the checkpoint"):
            dist.barrier(group=world.control)
