"""Metis's memory rule: which stages of a partition exceed their memory, and how their capacity then shrinks.

The rule compares a stage's layers on one device, times five, with the memory of all devices of its group; a
group of several types is charged for all replicas of the whole cluster. It is kept because the search's path
and its step count depend on it; plan.fits() is the check per device.
"""

from collections.abc import Sequence

from .problem import Problem, Span, binary_digits

MEMORY_FACTOR = 5.0
MEMORY_OFFSET_MB = 0.001
_SMALLEST_REQUEST, _SMALLEST_OFFER, _SHRINK = 0.01, 0.001, 0.9


def memory_capacity_mb(problem: Problem, span: Span) -> float:
    """Return the memory of all devices of a group."""
    return sum(count * problem.device(name).memory_mb for name, count in span.counts)


def memory_per_layer_mb(
    problem: Problem, ranks: Span, span: Span, strategy: tuple[int, int], batches: int
) -> list[float]:
    """Return what each layer asks of a group, by the profiles of the node sequence's first type.

    Args:
        ranks: all ranks, in the order of the node sequence.
        span: the group's ranks.
        strategy: (dp, tp) of the group.
        batches: micro-batches in a step.
    """
    num_replicas, degree = strategy
    samples = problem.settings.global_batch_size // batches
    if len(span.types) == 1:
        sizes = [samples // num_replicas]
    else:
        shares = problem.shares(ranks, num_replicas, degree, samples)
        sizes = [size for share in shares for size in binary_digits(share)]
    per_layer = [0.0] * problem.settings.num_layers
    for size in dict.fromkeys(sizes):
        profile = problem.profile(ranks.types[0], degree, size)
        for layer, memory_mb in enumerate(profile.execution_memory.layer_memory_total_mb):
            per_layer[layer] += sizes.count(size) * memory_mb
    return per_layer


def memory_demand_mb(per_layer_mb: Sequence[float], start: int, end: int) -> float:
    """Return what layers start to end ask of a group."""
    return MEMORY_OFFSET_MB + MEMORY_FACTOR * sum(per_layer_mb[start:end])


def shrunk_capacity(
    performance: Sequence[float], capacity_mb: Sequence[float], demand_mb: Sequence[float]
) -> tuple[float, ...] | None:
    """Return the performances with which to balance again, or None if the others cannot take it.

    Stages that exceed their memory give performance away; stages with memory to spare take it, in
    proportion to their performance.
    """
    shrunk, offers, request = list(performance), [0.0] * len(performance), 0.0
    for stage, whole in enumerate(performance):
        ratio = capacity_mb[stage] / demand_mb[stage]
        if capacity_mb[stage] > demand_mb[stage]:
            offers[stage] = whole * ratio - whole
        else:
            shrunk[stage] = whole * ratio * _SHRINK
            request += whole - shrunk[stage]
    if sum(offers) < request:
        return None
    while request > _SMALLEST_REQUEST and max(offers) > _SMALLEST_OFFER:
        taking = [stage for stage, offer in enumerate(offers) if offer > _SMALLEST_OFFER]
        whole = sum(performance[stage] for stage in taking)
        for stage in taking:
            taken = min(offers[stage], request * performance[stage] / whole)
            shrunk[stage] += taken
            offers[stage] -= taken
            request -= taken
    return tuple(shrunk)
