"""Memory of every rank of a plan, against its device."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from stagewright.flushless import FLUSHLESS, versions_needed
from stagewright.graph import LayerGraph, LayerNode, StoredTensor, unique_parameters
from stagewright.optimizer.borders import spec_of
from stagewright.optimizer.problem import Problem
from stagewright.plan import Border, Plan, Replica, ReplicaPrediction
from stagewright.scheduling import FORWARD_ONLY, INTERLEAVED, units_allowed
from stagewright.value import TensorSpec, ValueSpec, VoxelsSpec, tensors_of

from .cost import FORWARD_UNITS, memory_bytes, message_bytes, unit_bytes


@dataclass(frozen=True)
class Overflow:
    """A rank that does not fit."""

    stage: int
    """Its first."""
    replica: Replica
    peak_bytes: int
    limit_bytes: int


def overflows(
    plan: Plan, problem: Problem, predictions: Sequence[Sequence[ReplicaPrediction]]
) -> tuple[Overflow, ...]:
    """Return the ranks whose predicted peak, of all their stages, is above their device's memory."""
    peaks: dict[int, int] = defaultdict(int)
    first: dict[int, tuple[int, Replica]] = {}
    for stage, found in enumerate(predictions):
        for replica, predicted in zip(plan.stages[stage].replicas, found, strict=True):
            peaks[replica.rank] += predicted.peak_bytes
            first.setdefault(replica.rank, (stage, replica))
    return tuple(
        Overflow(stage, replica, peaks[rank], problem.memory_limit(replica.device_type))
        for rank, (stage, replica) in first.items()
        if peaks[rank] > problem.memory_limit(replica.device_type)
    )


def peak_bytes(plan: Plan, problem: Problem, stage: int, counts: Sequence[int]) -> list[int]:
    """Return the peak of each replica of a stage, given the micro-batches that each is dealt.

    Where ranks run several stages, this is the stage's part of its rank's peak.
    """
    replicas = plan.stages[stage].replicas
    if plan.schedule == INTERLEAVED:
        return [int(peak) for peak in _parts_of_peaks(plan, problem, stage)]
    units = units_of(plan, stage, counts)
    versions = [versions_needed(plan.schedule, u, n) for u, n in zip(units, counts, strict=True)]
    found = [
        _holding(plan, problem, stage, replica.device_type, kept)
        for replica, kept in zip(replicas, versions, strict=True)
    ]
    return [int(holding.bytes_with(held)) for holding, held in zip(found, units, strict=True)]


@dataclass(frozen=True)
class _Holding:
    """What one replica of a stage holds."""

    once_bytes: float
    """Whatever the units in flight."""
    unit_bytes: float
    working_bytes: float
    """Of the unit in work."""

    def bytes_with(self, units: int) -> float:
        return self.once_bytes + units * self.unit_bytes + self.working_bytes


def _holding(
    plan: Plan, problem: Problem, stage: int, device_type: str, versions: int = 1
) -> _Holding:
    model, graph = problem.inputs.model, problem.inputs.graphs[device_type]
    layers = [model.by_name[name] for name in plan.stages[stage].layers]
    exchanged = _exchanged_bytes(plan, problem, stage, layers)
    saved = sum(problem.saved_bytes(device_type, graph.by_name[layer.name]) for layer in layers)
    if stage == len(plan.stages) - 1:
        saved += problem.loss_saved_bytes(device_type)
    taken = exchanged.received + exchanged.loaded
    kept, rerun = unit_bytes(taken, saved, exchanged.sent, plan.stages[stage].recompute)
    once_bytes = memory_bytes(
        parameter_bytes=parameter_bytes(layers, model)[0],
        trained_bytes=trained_parameter_bytes(problem, layers),
        buffer_bytes=_buffer_bytes(layers),
        unit_bytes=kept,
        rerun_bytes=rerun,
        message_bytes=message_bytes(
            plan.schedule,
            exchanged.received,
            exchanged.received_gradient,
            exchanged.sent_gradient,
        ),
        working_bytes=0.0,
        copies=problem.copies,
        units=0,
        versions=versions,
    )
    working = 0.0 if problem.is_inference else _working_bytes(plan, problem, stage, device_type)
    return _Holding(float(once_bytes), float(kept), working)


def _working_bytes(plan: Plan, problem: Problem, stage: int, device_type: str) -> float:
    """Return what the unit in work holds beyond what is saved for it (branching/peaks.py)."""
    graph = problem.inputs.graphs[device_type]
    inside = [name for name in plan.stages[stage].layers if name in problem.position]
    ordered = sorted(inside, key=problem.position.__getitem__)
    later = most = 0
    if stage == len(plan.stages) - 1:
        most, later = problem.loss_working_bytes(device_type), problem.loss_saved_bytes(device_type)
    for layer in (graph.by_name[name] for name in reversed(ordered)):
        most = max(most, problem.working_bytes(layer) - later)
        later += problem.saved_bytes(device_type, layer)
    return float(most)


def _parts_of_peaks(plan: Plan, problem: Problem, stage: int) -> list[float]:
    """Return for each replica of a stage what it holds when its rank, with all its stages, holds most.

    The units in flight are those of the schedule's rows. One unit is in work at a time: of the rank's stages
    the one that takes most for it has it.
    """
    parts = []
    for replica in plan.stages[stage].replicas:
        own = {
            index: _holding(plan, problem, index, replica.device_type)
            for index in plan.stages_of_ranks[replica.rank]
        }
        busiest = max(own, key=lambda index: own[index].working_bytes)
        held, units_at_peak = dict.fromkeys(own, 0), 0
        now_bytes = most_bytes = 0.0
        for action in plan.rows.rows[replica.rank]:
            change = {"F": 1, "B": -1, "I": 0, "W": -1}[action.kind]
            held[action.stage] += change
            now_bytes += change * own[action.stage].unit_bytes
            if now_bytes > most_bytes:
                most_bytes, units_at_peak = now_bytes, held[stage]
        part = own[stage] if stage == busiest else replace(own[stage], working_bytes=0.0)
        parts.append(part.bytes_with(units_at_peak))
    return parts


def units_of(plan: Plan, stage: int, counts: Sequence[int]) -> list[int]:
    """Return the most units that each replica of a stage may hold; the schedule's rows never hold more."""
    if plan.schedule == INTERLEAVED:
        ranks = [replica.rank for replica in plan.stages[stage].replicas]
        return [plan.rows.units_in_flight(rank, stage) for rank in ranks]
    if plan.schedule == "gpipe":
        return list(counts)
    if plan.schedule == FORWARD_ONLY:
        return [min(count, FORWARD_UNITS) for count in counts]
    allowed = units_allowed(plan.pipeline())[stage]
    replicas = plan.stages[stage].replicas
    if plan.schedule in FLUSHLESS:
        return [allowed[replica.rank] for replica in replicas]
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


@dataclass(frozen=True)
class _Exchanged:
    """Bytes of one unit's messages and inputs; the words are those of intervals.Traffic."""

    received: int
    received_gradient: int
    loaded: int
    sent: int
    sent_gradient: int


def _exchanged_bytes(
    plan: Plan, problem: Problem, stage: int, layers: Sequence[LayerNode]
) -> _Exchanged:
    size, model = plan.microbatch_size, problem.inputs.model
    incoming = [border for border in plan.borders if border.target == stage]
    outgoing = _sent_once(
        [border for border in plan.borders if border.source == stage], model, size
    )
    used = {name for layer in layers for name in layer.inputs}
    if stage == len(plan.stages) - 1:
        used |= set(model.outputs)
    loaded = [tensor for i in plan.inputs if i.layer in used for tensor in tensors_of(i.spec)]
    backward = not problem.is_inference
    trained = [tensor for tensor in outgoing if tensor.requires_grad and backward]
    return _Exchanged(
        received=sum(border.forward_bytes(size) for border in incoming),
        received_gradient=sum(border.backward_bytes(size) for border in incoming if backward),
        loaded=sum(tensor.bytes_at(size) for tensor in loaded),
        sent=sum(tensor.bytes_at(size) for tensor in outgoing),
        sent_gradient=sum(tensor.bytes_at(size) for tensor in trained),
    )


def _sent_once(borders: Sequence[Border], model: LayerGraph, size: int) -> list[TensorSpec]:
    """Return the tensors that a stage sends, each once even if several stages receive it.

    Coordinates count with each sparse tensor of which some part is sent.
    """
    specs: dict[str, list[ValueSpec]] = {}
    for border in borders:
        for value in border.values:
            specs.setdefault(value.layer, []).append(value.spec)
    found: list[TensorSpec] = []
    for name, sent in specs.items():
        whole = spec_of(model.by_name[name], size)
        if isinstance(whole, VoxelsSpec) and not any(
            isinstance(spec, VoxelsSpec) and spec.features for spec in sent
        ):
            whole = whole.replace(features=None)
        found += tensors_of(whole)
    return found


def _buffer_bytes(layers: Sequence[LayerNode]) -> int:
    plain = sum(layer.buffer_bytes for layer in layers if not layer.buffers)
    named: dict[str, StoredTensor] = {b.name: b for layer in layers for b in layer.buffers}
    return plain + sum(b.spec.bytes_at(1) for b in named.values())
