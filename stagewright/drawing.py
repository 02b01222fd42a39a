"""Graphviz files that tools write: the source always, a picture beside it where graphviz is installed."""

import subprocess
from pathlib import Path
from shutil import which

from stagewright.document import InputError, write_atomically


def write_dot(path: Path, source: str) -> list[Path]:
    """Write graphviz source, and an SVG beside it where the `dot` program exists; return the files.

    Raises:
        InputError: the file cannot be written, or dot fails.
    """
    write_atomically(path, source.encode())
    program = which("dot")
    if program is None:
        return [path]
    picture = path.with_suffix(".svg")
    done = subprocess.run([program, "-Tsvg", str(path)], capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise InputError(f"{path}: dot cannot draw it: {reason[0]}")
    write_atomically(picture, done.stdout)
    return [path, picture]
