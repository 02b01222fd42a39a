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
    before = [0] * num_nodes
    for source, target in edges:
        before[target] |= 1 << source
    found = [0]
    level = [0]
    while level:
        grown = {
            mask | 1 << node
            for mask in level
            for node in range(num_nodes)
            if not mask >> node & 1 and before[node] & ~mask == 0
        }
        level = sorted(grown)
        found += level
        if len(found) > most:
            raise TooManyIdealsError(f"the graph has more than {most} ideals")
    if found[-1] != (1 << num_nodes) - 1:
        raise ValueError("the graph has a cycle")
    return tuple(found)


def members(mask: int) -> tuple[int, ...]:
    """Return the nodes of a set in ascending order."""
    return tuple(node for node in range(mask.bit_length()) if mask >> node & 1)


def membership(masks: Sequence[int], num_nodes: int) -> npt.NDArray[np.bool_]:
    """Return the (len(masks), num_nodes) table of which set holds which node."""
    table = np.zeros((len(masks), num_nodes), bool)
    for row, mask in enumerate(masks):
        table[row, list(members(mask))] = True
    return table


def subsets_of(row: int, table: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Return the rows up to `row` of a membership table whose sets lie within that row's, itself too."""
    outside = ~table[row]
    return np.flatnonzero(~table[: row + 1][:, outside].any(axis=1))
