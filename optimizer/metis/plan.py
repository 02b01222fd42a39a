"""One of Metis's plans, and whether it could be executed."""

from collections.abc import Iterator
from dataclasses import dataclass

from .problem import Problem, Span

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
        "mixed-tensor-parallel": not all(stage.span.is_pure(stage.num_replicas) for stage in stages),
        "exceeds-memory": not all(fits(problem, stage, plan.batches) for stage in stages),
    }
    return tuple(name for name, is_so in found.items() if is_so)


def fits(problem: Problem, stage: StagePlan, batches: int) -> bool:
    """Return whether every device holds the profiled memory of the stage's layers, for its largest share."""
    samples = problem.settings.global_batch_size // batches
    shares: tuple[tuple[str, int], ...]
    if len(stage.span.types) == 1:
        shares = ((stage.span.types[0], stage.batch_size),)
    else:
        shares = problem.typed_shares(stage.span, stage.num_replicas, stage.degree, samples)
    return all(
        device_memory_mb(problem, name, stage.degree, share, stage.start, stage.end)
        <= problem.device(name).memory_mb
        for name, share in shares
    )


def device_memory_mb(
    problem: Problem, device_type: str, degree: int, share: int, start: int, end: int
) -> float:
    """Return what a device holds of layers start to end, by the next measured batch size from its share."""
    size = share if problem.is_measured(share) else 1 << (share - 1).bit_length()
    memory = problem.profile(device_type, degree, size).execution_memory
    return sum(memory.layer_memory_total_mb[start:end])
