"""The stages of one rank, built and ready to be filled with weights."""

from collections.abc import Callable

import torch
from torch import nn

from stagewright.runtime.execution.recompute import RecomputingRunner
from stagewright.runtime.execution.stage import StageRunner
from stagewright.runtime.messages.slicing import Slicing
from stagewright.runtime.messages.values import Precision
from stagewright.runtime.storage.package import StagePackage, make_stage, share_tensors


def make_runners(
    package: StagePackage,
    rank: int,
    original: Callable[[], nn.Module],
    dtype: torch.dtype,
    device: torch.device,
    precision: Precision,
    slicing: Slicing | None,
) -> dict[int, StageRunner]:
    """Return what runs each of a rank's stages, by stage; most arguments are those of `make_stage`.

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
            slicing,
        )
        for index, stage in enumerate(plan.stages)
        if any(replica.rank == rank for replica in stage.replicas)
    }
    share_tensors([runner.module for runner in runners.values()], package.tied)
    return runners
