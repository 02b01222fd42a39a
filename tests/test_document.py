"""Files: strict, versioned, written whole or not at all."""

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stagewright import document
from stagewright.document import (
    Format,
    InputError,
    Record,
    demand_writable,
    load_record,
    read_bytes,
    read_text,
    save_record,
    sha256_of,
    write_atomically,
)
from stagewright.graph import LayerGraph


class Inner(Record):
    size_bytes: int


class Sample(Record):
    name: str
    inner: Inner
    times_ms: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name is empty, expected a word")


def rename(content: dict[str, Any]) -> dict[str, Any]:
    """Version 1 called the name a title."""
    return {"name": content.pop("title")} | content


FORM = Format(name="stagewright.sample", version=2, upgrades={1: rename})
SAMPLE = Sample(name="a", inner=Inner(size_bytes=3), times_ms=(0.1, 2.0))
HEAD: dict[str, Any] = {"format": "stagewright.sample", "version": 2}


def write(path: Path, content: object) -> Path:
    path.write_bytes(msgspec.json.encode(content))
    return path


def test_a_record_is_saved_with_its_format_and_loads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.json"
    save_record(path, FORM, SAMPLE)
    assert load_record(path, FORM, Sample) == SAMPLE
    content = msgspec.json.decode(path.read_bytes())
    assert list(content)[:2] == ["format", "version"]
    assert content["version"] == 2


def test_toml_loads_as_json_does(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        'format = "stagewright.sample"\nversion = 2\nname = "a"\ninner.size_bytes = 3\n'
    )
    assert load_record(path, FORM, Sample) == SAMPLE.replace(times_ms=())


def test_an_older_version_passes_through_the_upgrades(tmp_path: Path) -> None:
    old = {"format": FORM.name, "version": 1, "title": "a", "inner": {"size_bytes": 3}}
    assert load_record(write(tmp_path / "a.json", old), FORM, Sample).name == "a"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"format": "stagewright.plan"},
            "format is 'stagewright.plan', expected 'stagewright.sample'",
        ),
        ({"format": None}, "format is None"),
        ({"version": 3}, "version 3 is newer than version 2"),
        ({"version": 0}, "version is 0, expected an integer from 1 to 2"),
        ({"version": True}, "version is True"),
        ({"version": "2"}, "version is '2'"),
        ({"nmae": "a"}, "unknown field `nmae`"),
        ({"name": 7}, "Expected `str`, got `int` - at `$.name`"),
        ({"name": ""}, "name is empty, expected a word"),
        ({"inner": {}}, "missing required field `size_bytes` - at `$.inner`"),
        ({"inner": {"size_bytes": 1.5}}, "at `$.inner.size_bytes`"),
        ({"inner": {"size_bytes": "3"}}, "at `$.inner.size_bytes`"),
        ({"inner": {"size_bytes": 3, "x": 1}}, "unknown field `x` - at `$.inner`"),
        ({"times_ms": [1.0, None]}, "Expected `float`, got `null` - at `$.times_ms[1]`"),
    ],
)
def test_a_wrong_field_is_refused_by_file_and_place(
    changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    content = HEAD | {"name": "a", "inner": {"size_bytes": 3}} | changes
    path = write(tmp_path / "a.json", content)
    with pytest.raises(InputError) as caught:
        load_record(path, FORM, Sample)
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.json", b"{", "is not valid JSON"),
        ("a.json", b"", "is not valid JSON"),
        ("a.md", b"# a", "is not valid JSON"),
        ("a.json", b"[1]", "holds a list"),
        ("a.json", b'{"a": "\xff"}', "is not valid JSON"),
        ("a.json", b"[" * 100_000, "is not valid JSON"),
        ("a.toml", b"a = ", "is not valid TOML"),
        ("a.toml", b"\xff", "is not valid TOML"),
    ],
)
def test_what_is_no_document_is_refused_in_one_line(
    name: str, content: bytes, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_record(path, FORM, Sample)
    assert str(caught.value).startswith(f"{path}: {problem}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: cannot be read: No such file"):
        load_record(tmp_path / "none.json", FORM, Sample)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_record(tmp_path, FORM, Sample)


def test_records_do_not_change_and_changed_copies_are_checked() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        SAMPLE.name = "b"  # type: ignore[misc]
    assert SAMPLE.replace(name="b").name == "b"
    with pytest.raises(ValueError, match="name is empty"):
        SAMPLE.replace(name="")
    with pytest.raises(TypeError):
        Sample("a", Inner(size_bytes=1))  # type: ignore[call-arg]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match="cannot be written: No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"")
    with pytest.raises(InputError, match="cannot be written"):
        write_atomically(tmp_path / "a" / "b.json", b"")


def test_what_cannot_be_written_is_known_before(tmp_path: Path) -> None:
    demand_writable(tmp_path / "new" / "file.json")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"is a folder, expected a file"):
        demand_writable(tmp_path)
    with pytest.raises(InputError, match=r"cannot be written"):
        demand_writable(tmp_path / "file" / "below.json")


def test_a_path_that_no_file_can_have_is_one_clear_line() -> None:
    with pytest.raises(InputError, match=r"'a\\x00b': cannot be read: embedded null byte"):
        read_bytes(Path("a\0b"))


def test_text_must_be_utf8_and_the_hash_is_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"ab\xff")
    with pytest.raises(InputError, match="byte 2 is not UTF-8"):
        read_text(path)
    assert sha256_of(path) == hashlib.sha256(b"ab\xff").hexdigest()


def test_a_file_too_large_to_hold_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    with path.open("wb") as file:
        file.truncate(document.MOST_BYTES + 2**20)
    with pytest.raises(InputError, match=r"graph.json: has 257.0 MiB, expected at most 256 MiB"):
        LayerGraph.load(path)
