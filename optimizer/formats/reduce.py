"""From a dnn-partitioning workload to the items that are dealt: what must stay together becomes one item.

A device's forward operators must be contiguous; its backward operators follow their colours. The steps are
those of dnn-partitioning's own programme, so that the same ideals are counted:
colours are contracted; a backward colour without forward operators is mirrored with its edges reversed;
strongly connected items are fused; an item without any time that touches one other item joins it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from stagewright.optimizer.assignment.problem import AssignmentProblem, Item, Transfer

from .dnn_partitioning import Workload


@dataclass(frozen=True)
class Reduction:
    """The problem and what its items stand for."""

    problem: AssignmentProblem
    operators_of: tuple[tuple[int, ...], ...]
    """For every item the positions of its operators, ascending."""

    def operators(self, items: Iterable[int]) -> tuple[int, ...]:
        """Return the operators of some items, ascending."""
        return tuple(sorted(position for item in items for position in self.operators_of[item]))


def reduce(workload: Workload) -> Reduction:
    """Return the workload as a problem of dealing items."""
    groups = _contract_colours(workload)
    order = _order(workload, groups)
    groups = _fuse(groups, _components(len(groups), order))
    groups = _join_weightless(workload, groups)
    group_of = _group_of(groups)
    order = _order(workload, groups)
    transfers = []
    for position, operator in enumerate(workload.operators):
        touched = {group_of[position]} | {group_of[reader] for reader in workload.readers[position]}
        if len(touched) > 1 and operator.transfer_ms > 0:
            transfers.append(Transfer(cost_ms=operator.transfer_ms, items=frozenset(touched)))
    problem = AssignmentProblem(
        items=tuple(_item(workload, group) for group in groups),
        order=order,
        transfers=tuple(transfers),
        num_accelerators=workload.num_accelerators,
        num_cpus=workload.num_cpus,
        accelerator_bytes=workload.accelerator_bytes,
    )
    return Reduction(problem, groups)


Groups = tuple[tuple[int, ...], ...]


def _item(workload: Workload, group: tuple[int, ...]) -> Item:
    own = [workload.operators[position] for position in group]
    return Item(
        accelerator_ms=sum(operator.accelerator_ms for operator in own),
        cpu_ms=sum(operator.cpu_ms for operator in own),
        num_bytes=sum(operator.num_bytes for operator in own),
        supported=all(operator.supported for operator in own),
    )


def _contract_colours(workload: Workload) -> Groups:
    groups: dict[tuple[str, int], list[int]] = {}
    for position, operator in enumerate(workload.operators):
        key = ("alone", position) if operator.colour is None else ("colour", operator.colour)
        groups.setdefault(key, []).append(position)
    return tuple(tuple(group) for group in groups.values())


def _group_of(groups: Groups) -> dict[int, int]:
    return {position: number for number, group in enumerate(groups) for position in group}


def _order(workload: Workload, groups: Groups) -> tuple[tuple[int, int], ...]:
    """Return which item must not lie behind which: forward edges, and reversed ones at orphans.

    An orphan is an item with backward operators only; the mirror of its forward part has its backward
    edges reversed.
    """
    group_of = _group_of(groups)
    orphan = [all(workload.operators[p].backward for p in group) for group in groups]
    found = set()
    for source, target in workload.edges:
        first, second = group_of[source], group_of[target]
        if first == second:
            continue
        backward = workload.operators[source].backward, workload.operators[target].backward
        if backward == (False, False):
            found.add((first, second))
        elif backward == (True, True) and (orphan[first] or orphan[second]):
            found.add((second, first))
    return tuple(sorted(found))


def _fuse(groups: Groups, component_of: list[int]) -> Groups:
    fused: dict[int, list[int]] = {}
    for number, group in enumerate(groups):
        fused.setdefault(component_of[number], []).extend(group)
    return tuple(tuple(sorted(group)) for group in fused.values())


def _components(num_items: int, order: tuple[tuple[int, int], ...]) -> list[int]:
    """Return for every item the smallest item of its strongly connected component."""
    if _is_acyclic(order):
        return list(range(num_items))
    reach = [1 << item for item in range(num_items)]
    changed = True
    while changed:
        changed = False
        for before, after in reversed(order):
            grown = reach[before] | reach[after]
            changed |= grown != reach[before]
            reach[before] = grown
    return [
        next(other for other in range(num_items) if reach[item] >> other & reach[other] >> item & 1)
        for item in range(num_items)
    ]


def _is_acyclic(order: tuple[tuple[int, int], ...]) -> bool:
    sorter: TopologicalSorter[int] = TopologicalSorter()
    for before, after in order:
        sorter.add(after, before)
    try:
        sorter.prepare()
    except CycleError:
        return False
    return True


def _join_weightless(workload: Workload, groups: Groups) -> Groups:
    """Join every item without any time to the only item it touches, one after another.

    Nothing is lost by it: on its neighbour's device it costs nothing and saves their transfers. So it is
    done only where memory cannot matter and both run on the same device kinds.
    """
    total_bytes = sum(operator.num_bytes for operator in workload.operators)
    if total_bytes > workload.accelerator_bytes:
        return groups
    current = list(groups)
    while True:
        joined = _first_join(workload, current)
        if joined is None:
            return tuple(current)
        light, neighbour = joined
        current[neighbour] = tuple(sorted(current[neighbour] + current[light]))
        del current[light]


def _first_join(workload: Workload, groups: list[tuple[int, ...]]) -> tuple[int, int] | None:
    group_of = _group_of(tuple(groups))
    touching: list[set[int]] = [set() for _ in groups]
    for source, target in workload.edges:
        first, second = group_of[source], group_of[target]
        if first != second:
            touching[first].add(second)
            touching[second].add(first)
    for number, group in enumerate(groups):
        item = _item(workload, group)
        if item.accelerator_ms == 0 and item.cpu_ms == 0 and len(touching[number]) == 1:
            (neighbour,) = touching[number]
            if item.supported == _item(workload, groups[neighbour]).supported:
                return number, neighbour
    return None
