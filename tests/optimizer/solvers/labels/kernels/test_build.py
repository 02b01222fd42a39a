"""The compiled loops are made once, wherever there is a place, and a failure is one line."""

import ctypes
from pathlib import Path

import pytest

from stagewright.document import InputError
from stagewright.optimizer.solvers.labels.kernels import build

SOURCE = """#include "structs.h"
extern "C" int64_t twice(const Pair* pair) { return 2 * (pair->one + pair->other); }
"""
STRUCTS = "#include <cstdint>\nstruct Pair { int64_t one, other; };\n"


@pytest.fixture(autouse=True)
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sources in place of the planner's."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "kernels.cpp").write_text(SOURCE)
    monkeypatch.setattr(build, "FOLDER", folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    return folder


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")


def test_the_library_is_compiled_once(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build.built_library(STRUCTS)
    assert made.parent == sources / "__pycache__"
    pair = (ctypes.c_int64 * 2)(3, 4)
    assert ctypes.CDLL(str(made)).twice(pair) == 14
    without_compiler(monkeypatch)
    assert build.built_library(STRUCTS) == made
    (sources / "kernels.cpp").write_text(SOURCE.replace("2 *", "3 *"))
    with pytest.raises(InputError, match="no C"):
        build.built_library(STRUCTS)


def test_where_the_sources_cannot_be_written_the_user_s_cache_takes_it(
    sources: Path, tmp_path: Path
) -> None:
    (sources / "__pycache__").write_text("a file, where a folder is needed")
    assert build.built_library(STRUCTS).parent == tmp_path / "cache" / "stagewright"
    (tmp_path / "cache" / "stagewright").rename(tmp_path / "gone")
    (tmp_path / "cache" / "stagewright").write_text("a file, too")
    with pytest.raises(InputError, match="XDG_CACHE_HOME"):
        build.built_library(STRUCTS)


@pytest.mark.parametrize(
    ("compiler", "source", "said"),
    [
        ("", "this is no C++", "cannot compile it: .*error"),
        ("no-such-compiler -m64", SOURCE, "no C.. compiler .no-such-compiler -m64."),
        ("false", SOURCE, "false cannot compile it"),
    ],
)
def test_a_failing_compiler_is_one_line(
    sources: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, source: str, said: str
) -> None:
    monkeypatch.setenv("CXX", compiler)
    (sources / "kernels.cpp").write_text(source)
    with pytest.raises(InputError, match=said) as raised:
        build.built_library(STRUCTS)
    assert "\n" not in str(raised.value)
    assert not list((sources / "__pycache__").iterdir())
