"""Reads the JSON files of other systems strictly, and refuses graphs with cycles."""

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TypeVar

import msgspec

from stagewright.document import InputError, Record, read_bytes

RecordType = TypeVar("RecordType", bound=Record)


def decode_json(path: Path, record_type: type[RecordType]) -> RecordType:
    """Return a file's content as a record.

    Raises:
        InputError: the file cannot be read, is not JSON, or a field is unknown, missing or ill-typed.
    """
    try:
        return msgspec.json.decode(read_bytes(path), type=record_type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: {error}; is it a file of the named format?") from None


def refuse_cycle(
    path: Path, ids: Sequence[int], edges: Sequence[tuple[int, int]]
) -> tuple[int, ...]:
    """Return a topological order of the positions, the smallest position first where there is a choice.

    Raises:
        InputError: the edges (pairs of positions) have a cycle; the message names the nodes on it.
    """
    sorter: TopologicalSorter[int] = TopologicalSorter(dict.fromkeys(range(len(ids)), ()))
    for source, target in edges:
        sorter.add(target, source)
    try:
        sorter.prepare()
    except CycleError as error:
        names = " -> ".join(str(ids[position]) for position in error.args[1])
        raise InputError(f"{path}: the graph has a cycle: {names}; expected none") from None
    order: list[int] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        order += ready
        sorter.done(*ready)
    return tuple(order)
