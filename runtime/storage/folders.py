"""Where checkpoints are in their folder, by names alone; what the ranks and the launcher agree on."""

import re
from pathlib import Path

STOP_REQUEST = "stop-requested"
"""A file of this name beside the checkpoints asks the ranks to stop after the next; they delete it then."""
_FOLDER = re.compile(r"step-(\d{8})", re.ASCII)


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    found = [
        p
        for p in folder.iterdir()
        if _FOLDER.fullmatch(p.name) and (p / "checkpoint.json").is_file()
    ]
    return sorted(found, key=lambda path: path.name)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in a folder."""
    complete = complete_checkpoints(folder)
    return complete[-1] if complete else None


def newest_step(folder: Path) -> int:
    """Return the steps done at the newest complete checkpoint, 0 where there is none."""
    newest = newest_checkpoint(folder)
    return 0 if newest is None else int(newest.name.removeprefix("step-"))
