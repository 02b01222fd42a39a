"""Building the engine: what is refused, what is cached, and that the patch fits the source."""

import hashlib
import tarfile
from pathlib import Path

import pytest

from stagewright.document import InputError
from stagewright.models.minkowski.engine import build
from stagewright.models.minkowski.engine.build import cached_wheel, default_cache, install
from stagewright.models.minkowski.engine.installed import (
    PATCH,
    VERSION,
    build_key,
    found_version,
    wanted_version,
)


def test_a_source_with_another_hash_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "MinkowskiEngine-0.5.4.tar.gz"
    source.write_bytes(b"something else")
    with pytest.raises(InputError, match=r"SHA-256 is .*, expected b1879c00"):
        cached_wheel(tmp_path / "cache", source, 1, print)


def test_a_wheel_in_the_cache_is_taken_without_building(tmp_path: Path) -> None:
    wheel = tmp_path / f"{VERSION}-{build_key()}" / "minkowskiengine.whl"
    wheel.parent.mkdir()
    wheel.touch()
    assert cached_wheel(tmp_path, tmp_path / "no-source", 1, print) == wheel


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"no C\+\+ compiler"):
        cached_wheel(tmp_path, None, 1, print)


def test_missing_headers_of_python_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(InputError, match=r"Python\.h: is missing"):
        cached_wheel(tmp_path, None, 1, print)


def test_a_failing_build_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that the patch does not fit, with its hash made known."""
    tree = tmp_path / "MinkowskiEngine-0.5.4"
    tree.mkdir()
    (tree / "setup.py").write_text("print('other')\n")
    archive = tmp_path / "source.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(tree, tree.name)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(build, "SOURCE_SHA256", digest)
    with pytest.raises(InputError, match=r"fails with status .*see .*patch\.log"):
        cached_wheel(tmp_path / "cache", archive, 1, print)


@pytest.mark.skipif(
    not (default_cache() / f"MinkowskiEngine-{VERSION}.tar.gz").is_file(),
    reason="the source package of MinkowskiEngine was not fetched; run `make minkowski`",
)
def test_the_patch_fits_the_source_and_writes_our_version(tmp_path: Path) -> None:
    archive = default_cache() / f"MinkowskiEngine-{VERSION}.tar.gz"
    tree = build._patched_source(archive, tmp_path, tmp_path / "log")
    assert (
        f'__version__ = "{wanted_version()}"' in (tree / "MinkowskiEngine/__init__.py").read_text()
    )
    assert not list(tree.rglob("*.rej")), "hunks that did not fit"


@pytest.mark.skipif(
    found_version() != wanted_version(), reason="our build of MinkowskiEngine is not installed"
)
def test_installing_what_is_installed_does_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    install(tmp_path, None, None, told.append)
    assert told == [f"MinkowskiEngine {wanted_version()} is installed"]
    assert not list(tmp_path.iterdir())


def test_the_key_changes_with_the_patch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stagewright.models.minkowski.engine import installed

    other = tmp_path / "engine.patch"
    other.write_bytes(PATCH.read_bytes() + b"\n")
    before = build_key()
    monkeypatch.setattr(installed, "PATCH", other)
    build_key.cache_clear()
    try:
        assert build_key() != before
    finally:
        monkeypatch.undo()
        build_key.cache_clear()
