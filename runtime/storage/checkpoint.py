"""Checkpoints: one folder per saved step, written whole or not at all, keyed by original parameter names.

A checkpoint does not depend on the plan: any plan of the same model resumes from it. All ranks must see the
same folder. saving.py writes it. Its files are safetensors and JSON, so loading one executes nothing and
needs no trust.
"""

import re
from collections.abc import Container, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from stagewright.document import Format, InputError, Record, load_record
from stagewright.runtime.training.precision import LossScale

CHECKPOINT_FORMAT = Format(
    name="stagewright.checkpoint",
    version=3,
    upgrades={1: dict, 2: dict},  # 2 adds loss_scale, 3 epoch_loss_sum: null where left out.
)
_OPTIMIZER_KEY = re.compile(r"optimizer:(?P<state>[^:]*):(?P<name>.*)")


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
    loss_scale: LossScale | None = None
    """Of fp16; None: the run scaled nothing."""
    epoch_loss_sum: float | None = None
    """Of the steps of the last epoch so far, added in their order; None: not known, or not finite."""


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
