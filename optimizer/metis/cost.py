"""The time of one step of a plan by Metis's formula, in ms.

With e the time of a micro-batch on each stage and B micro-batches:

    cost = (B - 1) max e + sum e            pipeline: filled once, then the slowest stage
         + B outside(last stage)            forward and backward outside the layers: logits, loss
         + max update + max all-reduce + sum of messages + B batch generator

Approximate by design: no overlap, no latency, forward and backward in one number. Wrong by today's knowledge,
and kept so that published costs are reproduced: messages count elements as bytes, once per step; inter-node
bandwidth is never used. Source: Um et al., "Metis", USENIX ATC 2024, and the costs that it prints.
"""

import itertools
from dataclasses import dataclass

from .plan import MetisPlan, StagePlan
from .problem import Problem

BYTES_PER_MS = 2.0**20
"""Of one GB/s, as Metis counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostParts:
    """The terms of the cost, predicted, in ms."""

    stages: tuple[float, ...]
    """One micro-batch on each stage."""
    execution: float
    outside_layers: float
    update: float
    all_reduce: float
    messages: float
    batch_generator: float

    @property
    def total(self) -> float:
        parts = (self.outside_layers, self.update, self.all_reduce, self.messages)
        return sum((*parts, self.batch_generator), self.execution)


def cost_of(problem: Problem, plan: MetisPlan) -> CostParts:
    """Return the cost of the stages that the plan charges."""
    stages = tuple(plan.stages(problem))[: plan.stages_charged]
    times = tuple(stage_ms(problem, stage, plan.batches) for stage in stages)
    first = problem.folder.first[1].execution_time
    return CostParts(
        stages=times,
        execution=(plan.batches - 1) * max(times) + sum(times),
        outside_layers=plan.batches * outside_layers_ms(problem, stages[-1]),
        update=max(update_ms(problem, stage) for stage in stages),
        all_reduce=max(all_reduce_ms(problem, stage) for stage in stages),
        messages=sum(
            message_ms(problem, stage, successor) for stage, successor in itertools.pairwise(stages)
        ),
        batch_generator=plan.batches * first.batch_generator_time_ms,
    )


def stage_ms(problem: Problem, stage: StagePlan, batches: int) -> float:
    """Return forward plus backward of one micro-batch: the slowest replica's."""
    if len(stage.span.types) == 1:
        (name,) = stage.span.types
        return problem.layers_ms(name, stage.degree, stage.batch_size, stage.start, stage.end)
    samples = problem.settings.global_batch_size // batches
    return max(
        problem.share_ms(name, stage.degree, share, stage.start, stage.end)
        for name, share in problem.typed_shares(
            stage.span, stage.num_replicas, stage.degree, samples
        )
    )


def outside_layers_ms(problem: Problem, stage: StagePlan) -> float:
    """Return what one micro-batch takes outside the layers on its last stage, by its slowest type."""
    return max(
        problem.profile(name, stage.degree, stage.batch_size).outside_layers_ms
        for name in stage.span.types
    )


def update_ms(problem: Problem, stage: StagePlan) -> float:
    """Return the stage's part of twice the first file's optimizer time."""
    optimizer_ms = 2 * problem.folder.first[1].execution_time.optimizer_time_ms
    return optimizer_ms / stage.degree * (stage.end - stage.start) / problem.settings.num_layers


def all_reduce_ms(problem: Problem, stage: StagePlan) -> float:
    """Return a ring all-reduce of the stage's parameters over its replicas."""
    count = stage.num_replicas
    bandwidth = slowest_bandwidth(problem, stage.span.types)
    return 2 * (count - 1) / (count * bandwidth * BYTES_PER_MS) * parameter_bytes(problem, stage)


def parameter_bytes(problem: Problem, stage: StagePlan) -> float:
    """Return the parameters of a stage; all layers but the first and the last count as the second."""
    sizes = problem.folder.first[1].model.parameters.parameters_per_layer_bytes
    has_first, has_last = stage.start == 0, stage.end == problem.settings.num_layers
    num_middle = stage.end - stage.start - has_first - has_last
    middle_bytes = sizes[min(1, len(sizes) - 1)]
    whole = has_first * sizes[0] + has_last * sizes[-1] + num_middle * middle_bytes
    return whole / stage.degree


def message_ms(problem: Problem, stage: StagePlan, successor: StagePlan) -> float:
    """Return the time of the activations from a stage to the next: elements, taken for bytes."""
    bandwidth = slowest_bandwidth(problem, (*stage.span.types, *successor.span.types))
    return message_elements(problem, stage) / (bandwidth * BYTES_PER_MS)


def message_elements(problem: Problem, stage: StagePlan) -> float:
    """Return the elements that a stage sends; Metis takes the layer before the last for the logits."""
    settings = problem.settings
    rows = stage.batch_size * settings.sequence_length
    if stage.end == settings.num_layers - 1:
        return rows * settings.vocab_size / stage.degree
    return rows * settings.hidden_size


def slowest_bandwidth(problem: Problem, types: tuple[str, ...]) -> float:
    """Return the least "intra" bandwidth of some device types, in GB/s; Metis uses it everywhere."""
    return min(problem.device(name).bandwidth_gb_per_s for name in types)
