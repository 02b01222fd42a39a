"""Saving checkpoints with torch.distributed.checkpoint (DCP), at once or while training goes on.

DCP agrees on who writes what (a tensor that several ranks hold is written once, by the least loaded), and
tells every rank if one failed. The files are ours, safetensors and JSON, as its own format is read by pickle.
"""

import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult

from stagewright.document import InputError, save_record
from stagewright.runtime.ranks.faults import PeerLostError, waiting_for
from stagewright.runtime.ranks.world import World

from .checkpoint import CHECKPOINT_FORMAT, Checkpoint
from .folders import checkpoint_name, complete_checkpoints
from .weights import save_tensors

LATEST_END_S = 1.0
"""How much later a save may end on this rank than on another."""


class CheckpointSaver:
    """Saves the checkpoints of one rank; every rank calls its methods at the same time."""

    def __init__(self, folder: Path, world: World, keep: int, *, in_background: bool) -> None:
        """Keep the newest `keep` checkpoints in a folder.

        in_background: `save` returns when the tensors are copied, and a thread writes them.
        """
        self.folder, self._world, self._keep = folder, world, keep
        self._executor = ThreadPoolExecutor(1, "stagewright-checkpoint") if in_background else None
        self._running: Future[None] | None = None

    def save(self, tensors: Mapping[str, torch.Tensor], content: Checkpoint) -> None:
        """Save what all ranks hold, after the save before it is done.

        Args:
            tensors: what this rank holds; one that several ranks hold must be equal on them.
            content: the rest; its files are filled in.

        Raises:
            InputError: a rank cannot write; every rank raises it, with that rank's number.
            PeerLostError: another rank died or is stuck.
        """
        self.finish()
        if self._executor is None:
            self._save(tensors, content)
            return
        copies = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        self._running = self._executor.submit(self._save, copies, content)

    def check(self) -> None:
        """Raise what a save in the background has met so far; waits for nothing."""
        if self._running is not None and self._running.done():
            self.finish()

    @contextmanager
    def telling_first(self) -> Iterator[None]:
        """Let what a save has met come before the loss of a peer that ended because of it.

        Saves in the background end on one rank a little before they do on another.
        """
        try:
            yield
        except PeerLostError:
            if self._running is not None:
                wait([self._running], timeout=LATEST_END_S)
            self.check()
            raise

    def finish(self) -> None:
        """Wait until the last save is done; raises as `save` does."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _save(self, tensors: Mapping[str, torch.Tensor], content: Checkpoint) -> None:
        world = self._world
        writer = _SafetensorsWriter(self.folder, content, world.rank, self._keep)
        try:
            with (
                waiting_for("all ranks to write their part of the checkpoint"),
                warnings.catch_warnings(),
            ):
                if world.checkpoints is None:
                    warnings.filterwarnings("ignore", "torch.distributed is disabled")
                save(
                    dict(tensors),
                    storage_writer=writer,
                    planner=DefaultSavePlanner(
                        flatten_state_dict=False, flatten_sharded_tensors=False
                    ),
                    process_group=world.checkpoints,
                    no_dist=world.checkpoints is None,
                )
        except CheckpointException as error:
            if world.rank == 0:
                shutil.rmtree(writer.partial, ignore_errors=True)
            rank, (cause, _) = min(error.failures.items())
            if not isinstance(cause, InputError | OSError):
                raise
            raise InputError(
                f"the checkpoint after step {content.step}: rank {rank}: {cause}; free space or name another "
                "--checkpoint, then resume"
            ) from None


class _SafetensorsWriter(StorageWriter):
    """Writes one checkpoint, a file per rank; the first rank puts it in place when all are done."""

    def __init__(self, folder: Path, content: Checkpoint, rank: int, keep: int) -> None:
        super().__init__()
        name = checkpoint_name(content.step)
        self.partial, self._final = folder / f".{name}.partial", folder / name
        self._content, self._rank, self._keep = content, rank, keep

    def reset(self, checkpoint_id: str | PathLike[str] | None = None) -> None:
        """Nothing to reset: a writer writes one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *_: object, **__: object) -> None:
        """Nothing to set up."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike[str]) -> bool:
        return isinstance(checkpoint_id, str | PathLike)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make an empty folder; the first rank does, before any rank writes."""
        if self.partial.exists():
            shutil.rmtree(self.partial)
        self.partial.mkdir(parents=True)
        return plans

    def write_data(
        self, plan: SavePlan, planner: SavePlanner
    ) -> torch.futures.Future[list[WriteResult]]:
        """Write this rank's tensors as one file, whole or not at all."""
        found = {item.index.fqn: planner.resolve_data(item) for item in plan.items}
        tensors = {
            name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)
        }
        name = f"rank{self._rank}.safetensors"
        if tensors:
            save_tensors(self.partial / name, tensors, {})
        written: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        written.set_result(
            [
                WriteResult(
                    index=item.index,
                    size_in_bytes=tensors[item.index.fqn].nbytes,
                    storage_data=name,
                )
                for item in plan.items
            ]
        )
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Put the whole checkpoint in place of an older one of its step, and delete the oldest."""
        files = tuple(dict.fromkeys(r.storage_data for of_rank in results for r in of_rank))
        whole = self._content.replace(files=files)
        save_record(self.partial / "checkpoint.json", CHECKPOINT_FORMAT, whole)
        if self._final.exists():
            shutil.rmtree(self._final)
        self.partial.rename(self._final)
        for old in complete_checkpoints(self._final.parent)[: -self._keep]:
            shutil.rmtree(old)
