"""Memory of every rank of a plan, against its device."""

from collections.abc import Sequence
from dataclasses import dataclass

from stagewright.graph import LayerGraph, LayerNode, StoredTensor, unique_parameters
from stagewright.optimizer.problem import Problem
from stagewright.plan import Border, Plan, Replica, ReplicaPrediction
from stagewright.scheduling import FORWARD_ONLY, units_allowed
from stagewright.value import TensorSpec, tensors_of

from .cost import FORWARD_UNITS, memory_bytes, unit_bytes


@dataclass(frozen=True)
class Overflow:
    """A rank that does not fit."""

    stage: int
    replica: Replica
    peak_bytes: int
    limit_bytes: int


def overflows(
    plan: Plan, problem: Problem, predictions: Sequence[Sequence[ReplicaPrediction]]
) -> tuple[Overflow, ...]:
    """Return the ranks whose predicted peak is above their device's memory."""
    return tuple(
        Overflow(stage, replica, predicted.peak_bytes, problem.memory_limit(replica.device_type))
        for stage, found in enumerate(predictions)
        for replica, predicted in zip(plan.stages[stage].replicas, found, strict=True)
        if predicted.peak_bytes > problem.memory_limit(replica.device_type)
    )


def peak_bytes(plan: Plan, problem: Problem, stage: int, counts: Sequence[int]) -> list[int]:
    """Return the peak of each replica of a stage, given the micro-batches that each is dealt."""
    model = problem.inputs.model
    layers = [model.by_name[name] for name in plan.stages[stage].layers]
    parameters = parameter_bytes(layers, model)[0]
    trained = trained_parameter_bytes(problem, layers)
    taken, sent, gradients = _exchanged_bytes(plan, problem, stage, layers)
    recompute = plan.stages[stage].recompute
    units = units_of(plan, stage, counts)
    peaks = []
    for replica, held in zip(plan.stages[stage].replicas, units, strict=True):
        graph = problem.inputs.graphs[replica.device_type]
        saved = sum(
            problem.saved_bytes(replica.device_type, graph.by_name[layer.name]) for layer in layers
        )
        if stage == len(plan.stages) - 1:
            saved += problem.loss_saved_bytes(replica.device_type)
        kept, rerun = unit_bytes(taken, saved + sent, recompute)
        peak = memory_bytes(
            parameter_bytes=parameters,
            trained_bytes=trained,
            buffer_bytes=_buffer_bytes(layers),
            unit_bytes=kept,
            rerun_bytes=rerun,
            gradient_message_bytes=gradients,
            copies=problem.copies,
            units=held,
        )
        peaks.append(int(peak))
    return peaks


def units_of(plan: Plan, stage: int, counts: Sequence[int]) -> list[int]:
    """Return the most units that each replica of a stage may hold; the schedule's rows never hold more."""
    if plan.schedule == "gpipe":
        return list(counts)
    if plan.schedule == FORWARD_ONLY:
        return [min(count, FORWARD_UNITS) for count in counts]
    allowed = units_allowed(plan.pipeline())[stage]
    replicas = plan.stages[stage].replicas
    return [min(allowed[r.rank], count) for r, count in zip(replicas, counts, strict=True)]


def parameter_bytes(layers: Sequence[LayerNode], graph: LayerGraph) -> tuple[int, int]:
    """Return the bytes of all and of the trained parameters of some layers, shared ones once."""
    plain = sum(layer.parameter_bytes for layer in layers if not layer.parameters)
    named = unique_parameters(graph, layers).values()
    everything = sum(p.spec.bytes_at(1) for p in named)
    trained = sum(p.spec.bytes_at(1) for p in named if p.spec.requires_grad)
    return plain + everything, plain + trained


def trained_parameter_bytes(problem: Problem, layers: Sequence[LayerNode]) -> int:
    """Return the bytes of the parameters of some layers that a plan trains: none in inference."""
    return 0 if problem.is_inference else parameter_bytes(layers, problem.inputs.model)[1]


def _exchanged_bytes(
    plan: Plan, problem: Problem, stage: int, layers: Sequence[LayerNode]
) -> tuple[int, int, int]:
    """Return the bytes of one unit's inputs, of what it sends, and of its gradient messages."""
    size, model = plan.microbatch_size, problem.inputs.model
    incoming = [border for border in plan.borders if border.target == stage]
    outgoing = _sent_once([border for border in plan.borders if border.source == stage])
    used = {name for layer in layers for name in layer.inputs}
    if stage == len(plan.stages) - 1:
        used |= set(model.outputs)
    loaded = [tensor for i in plan.inputs if i.layer in used for tensor in tensors_of(i.spec)]
    taken = sum(border.forward_bytes(size) for border in incoming)
    taken += sum(tensor.bytes_at(size) for tensor in loaded)
    sent = sum(tensor.bytes_at(size) for tensor in outgoing)
    gradients = sum(border.backward_bytes(size) for border in incoming)
    gradients += sum(tensor.bytes_at(size) for tensor in outgoing if tensor.requires_grad)
    return taken, sent, 0 if problem.is_inference else gradients


def _sent_once(borders: Sequence[Border]) -> list[TensorSpec]:
    """Return the tensors that a stage sends, each once even if several stages receive it."""
    values = {value.layer: value.spec for border in borders for value in border.values}
    return [tensor for spec in values.values() for tensor in tensors_of(spec)]


def _buffer_bytes(layers: Sequence[LayerNode]) -> int:
    plain = sum(layer.buffer_bytes for layer in layers if not layer.buffers)
    named: dict[str, StoredTensor] = {b.name: b for layer in layers for b in layer.buffers}
    return plain + sum(b.spec.bytes_at(1) for b in named.values())
