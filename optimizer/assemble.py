"""Turns the stages that a solver chose into a Plan, scores and simulates it."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from stagewright.cluster import Slot
from stagewright.plan import Plan, Proof, Replica, ReplicaPrediction, Stage

from .borders import borders_of, inputs_of, layers_of_stages, stages_that_share_parameters
from .costs.backward_parts import in_parts
from .costs.evaluate import Score, score
from .costs.tables import StageTables
from .problem import Problem, StageChoice
from .simulation.simulate import Timeline, simulate

_UNKNOWN = ReplicaPrediction(
    forward_ms=math.nan,
    backward_ms=math.nan,
    reduce_ms=math.nan,
    update_ms=math.nan,
    peak_bytes=-1,
)
_NO_PROOF = Proof(solver="", objective="", value=math.nan, lower_bound=math.nan, space="")


@dataclass(frozen=True)
class Prediction:
    """A plan with what it is predicted to cost."""

    plan: Plan
    score: Score
    timeline: Timeline

    @property
    def has_ranks_of_several_stages(self) -> bool:
        return any(len(own) > 1 for own in self.plan.stages_of_ranks.values())

    @property
    def value_ms(self) -> float:
        """The objective, in time: simulated where ranks run several stages, else by the closed formula."""
        return self.timeline.step_ms if self.has_ranks_of_several_stages else self.score.value_ms


def draft(tables: StageTables, choices: Sequence[StageChoice], stages_per_rank: int = 1) -> Plan:
    """Return the plan of some stages, micro-batches dealt by speed, nothing predicted yet.

    Each stage takes the first free devices of each of its groups; with several stages per rank the first
    stages do, and the others take theirs in turn. Ranks are numbered in the order of the cluster's slots;
    idle devices have none.
    """
    problem = tables.problem
    graph, size = problem.inputs.model, problem.microbatch_size
    layers = layers_of_stages(graph, [problem.cuts.held(c.first, c.last) for c in choices])
    slots = _assign_slots(problem, choices[: len(choices) // stages_per_rank]) * stages_per_rank
    used = sorted({slot.rank for stage in slots for slot in stage})
    ranks = {slot_rank: rank for rank, slot_rank in enumerate(used)}
    stages = []
    rows = zip(layers, slots, _shares(tables, choices), choices, strict=True)
    for names, stage_slots, shares, choice in rows:
        replicas = [
            Replica(
                rank=ranks[slot.rank],
                server=slot.server,
                device_type=slot.device_type,
                share=share,
                predicted=_UNKNOWN,
            )
            for slot, share in zip(stage_slots, shares, strict=True)
        ]
        ordered = tuple(sorted(replicas, key=lambda r: r.rank))
        stages.append(Stage(layers=names, replicas=ordered, recompute=choice.recompute))
    used_types = {slot.device_type for stage in slots for slot in stage}
    return Plan(
        task=graph.model.task,
        factory=graph.model.factory,
        structure_sha256=graph.model.structure_sha256,
        dtype=graph.dtype,
        autocast=graph.autocast,
        microbatch_size=size,
        num_microbatches=problem.num_microbatches,
        schedule=problem.schedule,
        stages=tuple(stages),
        borders=borders_of(graph, layers, size),
        inputs=inputs_of(graph, size),
        slowdowns={
            name: other.emulation.slowdown
            for name, other in problem.inputs.graphs.items()
            if other.emulation is not None and name in used_types
        },
        predicted_step_ms=math.nan,
        proof=_NO_PROOF,
        sources=(),
    )


def predict(plan: Plan, problem: Problem) -> Prediction:
    """Return a plan with its score and simulated timeline filled in."""
    found = score(plan, problem)
    stages = tuple(
        stage.replace(
            replicas=tuple(
                replica.replace(
                    predicted=in_parts(predicted, plan, problem, number, replica.device_type)
                )
                for replica, predicted in zip(stage.replicas, predictions, strict=True)
            ),
        )
        for number, (stage, predictions) in enumerate(
            zip(plan.stages, found.predictions, strict=True)
        )
    )
    plan = plan.replace(stages=stages)
    sharing = stages_that_share_parameters(problem.inputs.model, [s.layers for s in stages])
    timeline = simulate(plan, problem.inputs.cluster, sharing, problem.overlap)
    plan = plan.replace(predicted_step_ms=timeline.step_ms)
    return Prediction(plan=plan, score=found, timeline=timeline)


def _assign_slots(problem: Problem, choices: Sequence[StageChoice]) -> list[list[Slot]]:
    """Return each stage's slots, in the order of the groups."""
    free = [iter(group.slots) for group in problem.groups]
    return [
        [
            slot
            for slots, count in zip(free, choice.devices, strict=True)
            for slot in itertools.islice(slots, count)
        ]
        for choice in choices
    ]


def _shares(tables: StageTables, choices: Sequence[StageChoice]) -> list[list[int]]:
    """Return each stage's shares, in the order of its slots: micro-batches by speed, in lowest terms."""
    shares = []
    for index, choice in enumerate(choices):
        place = tables.place_of(choices[index - 1].devices) if index else 0
        stage = tables.stage(choice, place)
        counts = [1] * sum(choice.devices) if tables.problem.equal_shares else stage.counts.tolist()
        divisor = math.gcd(*counts)
        shares.append([count // divisor for count in counts])
    return shares
