"""Which MinkowskiEngine this environment has: ours with its repairs, another one, or none."""

import hashlib
import importlib.metadata
import sys
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from stagewright.document import InputError

VERSION = "0.5.4"
PATCH = Path(__file__).with_name("engine.patch")
RECIPE = 1
"""Raise it when build.py builds another wheel from the same patch."""
INSTALL = "run `make minkowski` (python -m stagewright.models.minkowski.engine)"


@cache
def build_key() -> str:
    """Return the hash of all that a wheel depends on: patch, recipe, torch, Python and processor."""
    parts = (
        hashlib.sha256(PATCH.read_bytes()).hexdigest(),
        str(RECIPE),
        str(torch.__version__),
        str(sys.implementation.cache_tag),
        sysconfig.get_platform(),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def wanted_version() -> str:
    """Return the version of our build: 0.5.4+stagewright. and the key of what it was built from."""
    return f"{VERSION}+stagewright.{build_key()}"


def found_version() -> str | None:
    """Return the installed version; None: there is none."""
    try:
        return importlib.metadata.version("MinkowskiEngine")
    except importlib.metadata.PackageNotFoundError:
        return None


def why_unusable() -> str | None:
    """Return why sparse models cannot run here, in one line; None: they can.

    A build without our repairs is refused: its global pooling gives wrong rows (docs/minkowski.md).
    """
    found = found_version()
    if found is None:
        return f"MinkowskiEngine is not installed; {INSTALL}"
    if found != wanted_version():
        return (
            f"MinkowskiEngine {found} is installed, expected {wanted_version()}, built with our repairs "
            f"for this torch; {INSTALL}"
        )
    return None


def minkowski_engine() -> ModuleType:
    """Return the module MinkowskiEngine.

    Raises:
        InputError: it is missing, or is not our build for this torch.
    """
    reason = why_unusable()
    if reason is not None:
        raise InputError(reason)
    import MinkowskiEngine

    return MinkowskiEngine  # type: ignore[no-any-return]
