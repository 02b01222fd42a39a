"""The stages of one rank, built and ready to be filled with weights."""

from collections.abc import Callable

import torch
from torch import nn

from .execution.recompute import RecomputingRunner
from .execution.stage import StageRunner
from .messages.values import Precision
from .storage.package import StagePackage, make_stage, share_tensors


def make_runners(
    package: StagePackage,
    rank: int,
    original: Callable[[], nn.Module],
    dtype: torch.dtype,
    device: torch.device,
    precision: Precision,
) -> dict[int, StageRunner]:
    """Return what runs each of a rank's stages, by stage; the arguments are those of `make_stage`.

    Stages of one rank that hold the same tensor share it.
    """
    plan = package.plan
    runners = {
        index: (RecomputingRunner if stage.recompute else StageRunner)(
            index,
            make_stage(package, index, original, dtype, device),
            plan.borders,
            precision,
            device,
        )
        for index, stage in enumerate(plan.stages)
        if any(replica.rank == rank for replica in stage.replicas)
    }
    share_tensors([runner.module for runner in runners.values()], package.tied)
    return runners
