"""Ideals (downsets) of a directed acyclic graph: the sets of nodes that a pipeline's first stages can hold.

A set is a Python integer used as a bit mask: bit v stands for node v.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt


class TooManyIdealsError(Exception):
    """The graph has more ideals than the caller allows; another solver must be used."""


def ideals(num_nodes: int, edges: Iterable[tuple[int, int]], most: int) -> tuple[int, ...]:
    """Return every set that holds all predecessors of its nodes, by size, then by value.

    Args:
        num_nodes: nodes are 0 to num_nodes - 1.
        edges: pairs (before, after); without cycles.
        most: give up beyond so many ideals.

    Raises:
        TooManyIdealsError: there are more than `most`.
        ValueError: the graph has a cycle.
    """
    if num_nodes >= most:
        # A graph has an ideal more than nodes at least; and bit masks of huge graphs would fill the memory.
        raise TooManyIdealsError(f"the graph has {num_nodes} nodes and so more than {most} ideals")
    needs = [0] * num_nodes
    targets: list[list[int]] = [[] for _ in range(num_nodes)]
    for source, target in edges:
        needs[target] |= 1 << source
        targets[source].append(target)
    found = [0]
    level = {0: tuple(node for node, need in enumerate(needs) if not need)}
    """The sets of one size, each with the nodes that may be next."""
    while level:
        grown: dict[int, tuple[int, ...]] = {}
        for mask, ready in level.items():
            for node in ready:
                larger = mask | 1 << node
                if larger in grown:
                    continue
                new = (t for t in targets[node] if needs[t] & ~larger == 0)
                grown[larger] = (*(r for r in ready if r != node), *dict.fromkeys(new))
                if len(found) + len(grown) > most:
                    raise TooManyIdealsError(f"the graph has more than {most} ideals")
        level = grown
        found += sorted(grown)
    if found[-1] != (1 << num_nodes) - 1:
        raise ValueError("the graph has a cycle")
    return tuple(found)


def members(mask: int) -> tuple[int, ...]:
    """Return the nodes of a set in ascending order."""
    return tuple(node for node in range(mask.bit_length()) if mask >> node & 1)


def membership(masks: Sequence[int], num_nodes: int) -> npt.NDArray[np.bool_]:
    """Return the (len(masks), num_nodes) table of which set holds which node."""
    packed = b"".join(mask.to_bytes((num_nodes + 7) // 8, "little") for mask in masks)
    rows = np.frombuffer(packed, dtype=np.uint8).reshape(len(masks), -1)
    return np.unpackbits(rows, axis=1, bitorder="little")[:, :num_nodes].astype(bool)


def subsets_of(row: int, table: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Return the rows up to `row` of a membership table whose sets lie within that row's, itself too."""
    outside = ~table[row]
    return np.flatnonzero(~table[: row + 1][:, outside].any(axis=1))
