"""Topological orders that keep few bytes alive: their prefixes are good places to cut a graph."""

import heapq
from collections.abc import Collection, Sequence


def few_bytes_order(num_bytes: Sequence[float], targets: Sequence[Collection[int]]) -> list[int]:
    """Return a topological order; next is what leaves the fewest bytes alive, then what is newest.

    Every set of nodes that all orders pass through is passed through by this one, too. Nodes on or behind a
    cycle are left out.

    Args:
        num_bytes: of each node's value; it is alive until its last target has been placed.
        targets: of each node, those that take its value.
    """
    sources: list[list[int]] = [[] for _ in targets]
    for source, found in enumerate(targets):
        for target in found:
            sources[target].append(source)
    num_missing = [len(found) for found in sources]
    num_users = [len(found) for found in targets]
    since = [0 if not missing else -1 for missing in num_missing]
    """When a node became ready; -1: it is not, or it has been placed."""
    order: list[int] = []

    def entry(number: int) -> tuple[float, int, int]:
        freed = sum(num_bytes[s] for s in sources[number] if num_users[s] == 1)
        made = num_bytes[number] if targets[number] else 0.0
        return made - freed, -since[number], number

    heap = [entry(number) for number, start in enumerate(since) if start == 0]
    heapq.heapify(heap)
    while heap:
        number = heapq.heappop(heap)[2]
        if since[number] < 0:
            continue  # placed by an entry with a smaller key
        since[number] = -1
        order.append(number)
        for target in sorted(targets[number]):
            num_missing[target] -= 1
            if not num_missing[target]:
                since[target] = len(order)
                heapq.heappush(heap, entry(target))
        for source in sources[number]:
            num_users[source] -= 1
            if num_users[source] == 1:  # its last user now frees it
                for target in targets[source]:
                    if since[target] >= 0:
                        heapq.heappush(heap, entry(target))
    return order


def late_order(num_bytes: Sequence[float], sources: Sequence[Collection[int]]) -> list[int]:
    """Return a topological order that places nodes as late as it can: the order of the reversed graph."""
    return few_bytes_order(num_bytes, sources)[::-1]
