"""What every solver returns: the stages of a plan, with the proof of how good they are."""

from collections.abc import Sequence
from dataclasses import dataclass

from stagewright.certificate import Certificate, PricedLoads
from stagewright.document import InputError
from stagewright.optimizer.problem import Problem, StageChoice


class NoneFoundError(InputError):
    """A search ended without a plan, and without a proof that there is none."""

    def __init__(self, problem: Problem, time_limit_s: float | None) -> None:
        within = "" if time_limit_s is None else f" within {time_limit_s:.3g} s"
        super().__init__(
            f"{problem.inputs.cluster_path}: no plan was found{within} at micro-batch "
            f"{problem.microbatch_size}, but it is not proven that none fits: memory or a constraint is "
            "tight; raise --time-limit, use smaller micro-batches, or relax a constraint"
        )


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The best plan that a solver found, under the cost model's closed formula."""

    solver: str
    stages: tuple[StageChoice, ...]
    value_ms: float
    bound_ms: float
    """No plan in the space is faster."""
    space: str
    evaluated: int
    """Plans or thresholds looked at."""
    mixes_types: bool = True
    """Whether plans of the space may have stages on devices of several types."""
    certificate: Certificate | None = None
    """Proves the bound, or part of it."""
    mixed_bound_ms: float | None = None
    """No plan is faster, stages of several types included; None: nothing but bound_ms is known."""
    mixed_certificate: Certificate | None = None
    """Proves that one."""
    stages_per_rank: int = 1
    """The stages are dealt to the devices of the first ones in turn; with several, the value is simulated."""


def space_of(problem: Problem, *, one_type_per_stage: bool = False) -> str:
    """Return which plans an exact solver searches, for people, and what the bound leaves out."""
    limit = f", at most {problem.max_stages} stages" if problem.max_stages else ""
    if problem.constraints.named:
        limit += f", with {' '.join(problem.constraints.named)}"
    replicas = (
        "any replicas of one type" if one_type_per_stage else "any replicas of one or several types"
    )
    return (
        f"{problem.cuts.description}, device types in any order, {replicas} per stage with micro-batches "
        f"dealt by speed, idle devices allowed{limit}; schedule {problem.schedule}, overlap "
        f"{problem.overlap}, optimizer {problem.optimizer}, memory "
        f"{'limited' if problem.count_memory else 'ignored'}, update "
        f"{'counted' if problem.count_update else 'ignored'}"
    )


def certificate_for(
    problem: Problem,
    bound_ms: float,
    intervals: Sequence[PricedLoads],
    *,
    mixes_types: bool = False,
    is_over_sets: bool = False,
    is_replica_indexed: bool = False,
    is_for_every_cut: bool = False,
) -> Certificate:
    """Return the certificate of a bound for a problem, a little lower so that roundings do not matter."""
    return Certificate(
        bound_ms=max(0.0, bound_ms) * (1 - 1e-10),
        microbatch_size=problem.microbatch_size,
        num_microbatches=problem.num_microbatches,
        schedule=problem.schedule,
        objective=problem.objective,
        optimizer=problem.optimizer,
        overlap=problem.overlap,
        count_memory=problem.count_memory,
        count_update=problem.count_update,
        straight=problem.constraints.straight,
        allow_recompute=problem.constraints.allow_recompute,
        budget_per_hour=problem.constraints.budget_per_hour,
        period_ms=problem.constraints.period_ms,
        max_stages=problem.max_stages,
        cuts=problem.cutting,
        mixes_types=mixes_types,
        is_over_sets=is_over_sets,
        is_for_every_cut=is_for_every_cut,
        is_replica_indexed=is_replica_indexed,
        intervals=tuple(intervals),
    )
