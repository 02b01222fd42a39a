"""The one evaluator: scores any plan, whoever made it, layer by layer; solvers are checked against it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stagewright.graph import LayerNode, unique_parameters
from stagewright.optimizer.borders import stages_that_share_parameters
from stagewright.optimizer.problem import Problem
from stagewright.plan import Plan, ReplicaPrediction

from .cost import (
    compute_load_ms,
    gradient_sum_ms,
    link_load_ms,
    objective_ms,
    transfer_ms,
    update_ms,
    window_rounds,
)
from .footprint import Overflow, overflows, peak_bytes, trained_parameter_bytes, units_of
from .intervals import trained_bytes


@dataclass(frozen=True)
class Score:
    """A plan's cost under the closed formula."""

    sum_ms: float
    """One micro-batch through all stages and back, with its messages."""
    load_ms: float
    """The busiest part's time for everything else."""
    value_ms: float
    """The objective, in time; for cost, the step time."""
    predictions: tuple[tuple[ReplicaPrediction, ...], ...]
    """Per stage and replica."""
    overflows: tuple[Overflow, ...]
    """Empty if memory is not counted."""


def score(plan: Plan, problem: Problem) -> Score:
    """Return a plan's score; its micro-batches, schedule and shares are the plan's own.

    Raises:
        InputError: something that the score depends on was not measured.
    """
    counts = _counts(plan)
    sharing = stages_that_share_parameters(
        problem.inputs.model, [stage.layers for stage in plan.stages]
    )
    predictions = [_predict(plan, problem, stage, counts, sharing) for stage in range(len(counts))]
    sum_ms = load_ms = 0.0
    for stage in reversed(range(len(plan.stages))):
        latency_ms, stage_load_ms, incoming_ms = _stage_cost(
            plan, problem, stage, counts[stage], predictions[stage], sum_ms
        )
        load_ms = max(load_ms, stage_load_ms)
        sum_ms = sum_ms + latency_ms + incoming_ms
    return Score(
        sum_ms=sum_ms,
        load_ms=load_ms,
        value_ms=objective_ms(problem.objective, sum_ms, load_ms),
        predictions=tuple(predictions),
        overflows=overflows(plan, problem, predictions) if problem.count_memory else (),
    )


def _stage_cost(
    plan: Plan,
    problem: Problem,
    stage: int,
    counts: Sequence[int],
    predictions: Sequence[ReplicaPrediction],
    behind_ms: float,
) -> tuple[float, float, float]:
    """Return a stage's latency, load and incoming messages, in ms.

    Args:
        behind_ms: one micro-batch through all later stages and back.
    """
    objective = problem.objective
    forward_ms, backward_ms = _messages_ms(plan, problem, stage)
    message_ms = forward_ms + backward_ms
    waits = problem.overlap == "none"
    replica_ms = np.array([p.forward_ms + p.backward_ms for p in predictions])
    if waits:
        replica_ms = replica_ms + message_ms
    latency_ms = float(replica_ms.max())
    busy_ms = float((np.array(counts) * replica_ms).max())
    end_ms = max(p.reduce_ms + p.update_ms for p in predictions)
    units = np.array(units_of(plan, stage, counts))
    slope, intercept = window_rounds(objective, replica_ms, np.array(counts), units)
    load_ms = max(
        float(compute_load_ms(objective, latency_ms, busy_ms, end_ms)),
        float((slope * behind_ms + intercept).max()),
    )
    if waits:
        return latency_ms, load_ms, 0.0
    link_ms = link_load_ms(objective, max(counts), max(forward_ms, backward_ms))
    return latency_ms, max(load_ms, float(link_ms)), message_ms


def _counts(plan: Plan) -> list[list[int]]:
    """Return how many micro-batches each replica of each stage is dealt."""
    counts = []
    for stage, route in zip(plan.stages, plan.pipeline().routes, strict=True):
        dealt = Counter(route)
        counts.append([dealt[replica.rank] for replica in stage.replicas])
    return counts


def _predict(
    plan: Plan,
    problem: Problem,
    stage: int,
    counts: list[list[int]],
    sharing: Sequence[Sequence[int]],
) -> tuple[ReplicaPrediction, ...]:
    """Return what each replica of a stage takes."""
    replicas = plan.stages[stage].replicas
    reduce_ms = _reduce_ms(plan, problem, stage, sharing)
    peaks = [0] * len(replicas)
    if problem.count_memory:
        peaks = peak_bytes(plan, problem, stage, counts[stage])
    predictions = []
    for replica, peak in zip(replicas, peaks, strict=True):
        graph = problem.inputs.graphs[replica.device_type]
        names = plan.stages[stage].layers
        layers = [graph.by_name[name] for name in names]
        costs = [layer.cost_at(plan.microbatch_size) for layer in layers]
        loss_forward, loss_backward = 0.0, 0.0
        if stage == len(plan.stages) - 1:
            loss_forward, loss_backward = problem.loss_ms(replica.device_type)
        whole_ms = problem.whole_update_ms(replica.device_type)
        stage_update_ms = update_ms(
            whole_ms, float(trained_parameter_bytes(problem, layers)), float(trained_bytes(graph))
        )
        forward_ms = sum(cost.forward_ms for cost in costs) + loss_forward
        forward_ms += graph.built_again_ms(names, plan.microbatch_size)
        backward_ms = sum(cost.backward_ms for cost in costs) + loss_backward
        if plan.stages[stage].recompute:
            backward_ms += forward_ms
        predictions.append(
            ReplicaPrediction(
                forward_ms=forward_ms,
                backward_ms=0.0 if problem.is_inference else backward_ms,
                reduce_ms=reduce_ms,
                update_ms=float(stage_update_ms),
                peak_bytes=peak,
            )
        )
    return tuple(predictions)


def _layers(plan: Plan, problem: Problem, stage: int) -> list[LayerNode]:
    return [problem.inputs.model.by_name[name] for name in plan.stages[stage].layers]


def _reduce_ms(plan: Plan, problem: Problem, stage: int, sharing: Sequence[Sequence[int]]) -> float:
    """Return the gradient sum over the replicas, and over the whole cluster of what other stages share."""
    model = problem.inputs.model
    own = unique_parameters(model, _layers(plan, problem, stage))
    others: set[str] = set()
    for other in sharing[stage]:
        if other != stage:
            others |= set(unique_parameters(model, _layers(plan, problem, other)))
    shared = sum(
        p.spec.bytes_at(1)
        for name, p in own.items()
        if name in others and p.spec.requires_grad and not problem.is_inference
    )
    trained = trained_parameter_bytes(problem, _layers(plan, problem, stage))
    replicas = plan.stages[stage].replicas
    inside = problem.links_inside(frozenset(replica.server for replica in replicas))
    everywhere = problem.links_inside(problem.all_servers)
    own_ms = gradient_sum_ms(float(trained - shared), len(replicas), inside)
    return float(own_ms + gradient_sum_ms(float(shared), problem.num_devices, everywhere))


def _messages_ms(plan: Plan, problem: Problem, stage: int) -> tuple[float, float]:
    """Return the time of a stage's messages from earlier stages and of the gradients back, per micro-batch.

    All go over the link from the stage before.
    """
    if stage == 0:
        return 0.0, 0.0
    before, own = (
        frozenset(replica.server for replica in plan.stages[s].replicas) for s in (stage - 1, stage)
    )
    links = problem.links_across(problem.places[problem.place_of(before)], own)
    borders = [border for border in plan.borders if border.target == stage]
    size = plan.microbatch_size
    forward = sum(b.forward_bytes(size) for b in borders)
    backward = 0 if problem.is_inference else sum(b.backward_bytes(size) for b in borders)
    return float(transfer_ms(float(forward), links)), float(transfer_ms(float(backward), links))
