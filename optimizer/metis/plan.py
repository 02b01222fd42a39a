"""One of Metis's plans, and whether it could be executed."""

from collections.abc import Iterator
from dataclasses import dataclass

from .problem import Problem, Span, binary_digits

DEFECTS = {
    "empty-stage": "a stage has no layer",
    "layers-lost": "some layers are in no stage",
    "stages-not-charged": "its cost counts the first stage only",
    "mixed-tensor-parallel": "a tensor-parallel group has several device types, charged as its first",
    "exceeds-memory": "the layers of a stage need more memory than a device has",
}
"""Why a plan is not executable, or not worth its cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage: its ranks and its layers."""

    span: Span
    num_replicas: int
    """dp."""
    degree: int
    """tp."""
    batch_size: int
    """Samples in a micro-batch of an average replica: gbs // dp // batches."""
    start: int
    end: int
    """Layers start to end, without end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetisPlan:
    """What Metis prints as one line."""

    node_sequence: tuple[str, ...]
    """The device types in the order of the ranks."""
    device_groups: tuple[int, ...]
    """Devices of each stage."""
    strategies: tuple[tuple[int, int], ...]
    """(dp, tp) of each stage."""
    batches: int
    """Micro-batches in a step."""
    partition: tuple[int, ...]
    """The first layer of each stage, and the end of the last."""
    stages_charged: int
    """Stages that the cost counts. Metis's search sometimes counts one of several; others count all."""

    @property
    def num_stages(self) -> int:
        return len(self.device_groups)

    def stages(self, problem: Problem) -> Iterator[StagePlan]:
        """Yield the stages in order."""
        ranks, start = problem.span(self.node_sequence), 0
        for index, size in enumerate(self.device_groups):
            num_replicas, degree = self.strategies[index]
            yield StagePlan(
                span=ranks.part(start, size),
                num_replicas=num_replicas,
                degree=degree,
                batch_size=problem.settings.global_batch_size // num_replicas // self.batches,
                start=self.partition[index],
                end=self.partition[index + 1],
            )
            start += size


def defects_of(problem: Problem, plan: MetisPlan) -> tuple[str, ...]:
    """Return why a plan is not executable: keys of DEFECTS; none if it is."""
    stages = tuple(plan.stages(problem))
    found = {
        "empty-stage": any(stage.start >= stage.end for stage in stages),
        "layers-lost": plan.partition[-1] < problem.settings.num_layers,
        "stages-not-charged": plan.stages_charged < plan.num_stages,
        "mixed-tensor-parallel": not all(
            stage.span.is_pure(stage.num_replicas) for stage in stages
        ),
        "exceeds-memory": not all(fits(problem, stage, plan.batches) for stage in stages),
    }
    return tuple(name for name, is_so in found.items() if is_so)


def fits(problem: Problem, stage: StagePlan, batches: int) -> bool:
    """Return whether every device holds the profiled memory of the stage's layers, for its share."""
    samples = problem.settings.global_batch_size // batches
    return all(
        sum(held_mb[stage.start : stage.end]) <= problem.device(name).memory_mb
        for name, held_mb in held_per_layer_mb(problem, stage.span, stage.degree, samples)
    )


def held_per_layer_mb(
    problem: Problem, span: Span, degree: int, num_samples: int
) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """Return what a device of each type of a group holds of every layer, once for each distinct share.

    A share counts as the next larger power of two that was profiled, or as its binary digits, each with
    weights of its own, if none was. A device without a share holds the layers all the same: it counts as
    having one sample.

    Args:
        span: the group's ranks.
        degree: its tensor parallelism.
        num_samples: in a micro-batch of all replicas.
    """
    num_replicas = span.size // degree
    heads = span.heads(num_replicas)
    if len(span.types) == 1:
        shares: tuple[int, ...] = (num_samples // num_replicas,) * num_replicas
    else:
        shares = problem.shares(span, num_replicas, degree, num_samples)
    found = []
    for name, share in dict.fromkeys(zip(heads, shares, strict=True)):
        next_power = 1 << max(share - 1, 0).bit_length()
        sizes = binary_digits(share)
        for size in (max(share, 1), next_power):
            if problem.is_measured(size):
                sizes = (size,)
                break
        memory = [problem.profile(name, degree, size).execution_memory for size in sizes]
        lists = [content.layer_memory_total_mb for content in memory]
        found.append((name, tuple(sum(layer) for layer in zip(*lists, strict=True))))
    return tuple(found)
