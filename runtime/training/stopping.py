"""Stopping when asked: training ends after its next checkpoint, to go on elsewhere."""

from pathlib import Path

import torch.distributed as dist

from stagewright.runtime.ranks.faults import waiting_for
from stagewright.runtime.ranks.world import World
from stagewright.runtime.storage.folders import STOP_REQUEST


def is_stop_requested(folder: Path, world: World) -> bool:
    """Return whether to stop now, the same on every rank; called by all, right after a checkpoint."""
    asked = [False]
    if world.rank == 0:
        request = folder / STOP_REQUEST
        asked = [request.is_file()]
        request.unlink(missing_ok=True)
    if world.control is not None:
        with waiting_for("rank 0 to say whether training goes on"):
            dist.broadcast_object_list(asked, src=0, group=world.control)
    return asked[0]
