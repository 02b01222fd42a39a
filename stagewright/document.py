"""Files that tools exchange: versioned, strictly decoded, written whole or not at all.

Every native file carries {"format": "stagewright.graph", "version": 1}. A newer version is refused with
both numbers; an older one passes through the format's upgrade functions. Nothing in a file is executed.
"""

import hashlib
import os
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, dataclass_transform

import msgspec


class InputError(Exception):
    """The user's input is wrong: one line that says where, what was found, what was expected, what to do."""


if TYPE_CHECKING:

    @dataclass_transform(frozen_default=True, kw_only_default=True)
    class Record:
        """What a type checker sees: msgspec's own declaration hides that subclasses are frozen too."""

        __struct_fields__: ClassVar[tuple[str, ...]]

        def __init_subclass__(
            cls,
            *,
            tag_field: str = "",
            tag: str = "",
            dict: bool = False,
            omit_defaults: bool = False,
        ) -> None: ...

        def replace(self, **changes: Any) -> Self: ...

else:

    class _KeywordOnly(type(msgspec.Struct)):
        """msgspec passes frozen and forbid_unknown_fields on to subclasses, but not kw_only."""

        def __new__(mcs, *arguments: Any, **options: Any) -> type:
            return super().__new__(mcs, *arguments, **({"kw_only": True} | options))

    class Record(msgspec.Struct, metaclass=_KeywordOnly, frozen=True, forbid_unknown_fields=True):
        """An immutable noun; decoding refuses unknown, missing and ill-typed fields."""

        def replace(self, **changes: Any) -> Self:
            """Return a copy with some fields changed, checked as every new record is."""
            return msgspec.structs.replace(self, **changes)


RecordType = TypeVar("RecordType", bound=Record)
Upgrade = Callable[[dict[str, Any]], dict[str, Any]]

MOST_BYTES = 256 * 2**20
"""Of a document that is read: 50 000 layers with five micro-batch sizes; more would fill the memory."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """The name and the current version of one kind of file."""

    name: str
    version: int
    upgrades: Mapping[int, Upgrade] = field(default_factory=dict)
    """From a version to the function that turns its content into the next version's."""


def load_record(path: Path, form: Format, record_type: type[RecordType]) -> RecordType:
    """Return the record in a JSON or (by the suffix .toml) TOML file.

    Raises:
        InputError: the file is missing, unreadable, of another format, newer than this program, or any
            field is unknown, missing or ill-typed; the message names the file and the field.
    """
    demand_size(path, MOST_BYTES)
    content = _parse(path, read_bytes(path))
    found = content.pop("format", None)
    if found != form.name:
        raise InputError(
            f"{path}: format is {found!r}, expected {form.name!r}; name a file of that format"
        )
    version = content.pop("version", None)
    if type(version) is not int or version < 1:
        raise InputError(
            f"{path}: version is {version!r}, expected an integer from 1 to {form.version}"
        )
    if version > form.version:
        raise InputError(
            f"{path}: {form.name} version {version} is newer than version {form.version}, "
            "the newest that this program reads; update Stagewright"
        )
    for old in range(version, form.version):
        content = form.upgrades[old](content)
    try:
        return msgspec.convert(content, record_type)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: {error}") from None


def save_record(path: Path, form: Format, record: Record) -> None:
    """Write a record as JSON, whole or not at all; the folder is made if it is missing."""
    content = {"format": form.name, "version": form.version} | msgspec.to_builtins(record)
    write_atomically(path, msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name in its folder, then rename it.

    Raises:
        InputError: the folder or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {reason_of(error)}") from None


def demand_writable(path: Path) -> None:
    """Make a file's folder; raise InputError if the file could not be written: before long work, not after.

    Raises:
        InputError: the path is a folder, or its folder cannot be made or written.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a file to write; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {reason_of(error)}") from None


def reason_of(error: OSError) -> str:
    """Return why a file or folder could not be written."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a part of its path is a file, expected folders; name another path"
    return error.strerror or str(error)


def demand_size(path: Path, most_bytes: int) -> None:
    """Raise InputError if a file is larger than some bytes; one that cannot be read is left to `read_bytes`.

    Raises:
        InputError: it is larger.
    """
    try:
        num_bytes = path.stat().st_size
    except (OSError, ValueError):
        return
    if num_bytes > most_bytes:
        raise InputError(
            f"{path}: has {num_bytes / 2**20:.1f} MiB, expected at most {most_bytes / 2**20:.0f} MiB; name "
            "another file, or merge layers"
        )


def read_bytes(path: Path) -> bytes:
    """Return a file's content.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # a path from a file may hold a zero character
        raise InputError(f"{str(path)!r}: cannot be read: {error}; correct the path") from None


def read_text(path: Path) -> str:
    """Return a UTF-8 file's content.

    Raises:
        InputError: the file cannot be read or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; expected a text file") from None


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        if path.suffix == ".toml":
            return tomllib.loads(content.decode("utf-8"))
        value = msgspec.json.decode(content)
    except (
        tomllib.TOMLDecodeError,
        msgspec.DecodeError,
        UnicodeDecodeError,
        RecursionError,
    ) as error:
        raise InputError(
            f"{path}: is not valid {'TOML' if path.suffix == '.toml' else 'JSON'}: {error}"
        ) from None
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: holds a {type(value).__name__}, expected an object with named fields"
        )
    return value
