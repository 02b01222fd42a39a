"""Compiles the inner loops once; the library is kept beside the sources, or else in the user's cache."""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from stagewright.document import InputError

FOLDER = Path(__file__).parent
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared")
COMPILERS = ("c++", "g++", "clang++")


def built_library(structs: str) -> Path:
    """Return the compiled library, made now unless it is there already.

    Args:
        structs: the text of structs.h.

    Raises:
        InputError: there is no compiler, it fails, or there is no place for the library.
    """
    sources = sorted((*FOLDER.glob("*.h"), *FOLDER.glob("*.cpp")))
    parts = [platform.machine(), *FLAGS, structs, *(path.read_text() for path in sources)]
    name = f"kernels-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:16]}.so"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    places = [FOLDER / "__pycache__", cache / "stagewright"]
    for place in places:
        if (place / name).is_file():
            return place / name
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place) as folder:
                made = _compiled(structs, Path(folder))
                # Another process may do the same: the last one's is kept, and all are equal.
                return made.replace(place / name)
        except OSError:
            continue
    raise InputError(
        f"{places[-1]}: cannot be written, and the planner's compiled loops go there; set XDG_CACHE_HOME to "
        "a folder that can"
    )


def _compiled(structs: str, folder: Path) -> Path:
    """Compile in a folder; return the library.

    Raises:
        InputError: there is no compiler, or it fails.
    """
    (folder / "structs.h").write_text(structs)
    made = folder / "kernels.so"
    source = FOLDER / "kernels.cpp"
    command = [*_compiler(), *FLAGS, f"-I{folder}", "-o", str(made), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
        raise InputError(
            f"{source}: {command[0]} cannot compile it: {lines[0].strip()}; name another C++17 compiler in "
            "CXX"
        )
    return made


def _compiler() -> list[str]:
    """Return the command of the C++ compiler.

    Raises:
        InputError: there is none.
    """
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [[name] for name in COMPILERS]:
        if shutil.which(command[0]):
            return command
    raise InputError(
        f"there is no C++ compiler ({' '.join(named) or ', '.join(COMPILERS)}), which planning for large "
        "clusters needs; install one, or name it in CXX"
    )
