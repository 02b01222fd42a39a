"""What every solver returns: the stages of a plan, with the proof of how good they are."""

from dataclasses import dataclass

from stagewright.certificate import Certificate
from stagewright.optimizer.borders import has_branches
from stagewright.optimizer.problem import Problem, StageChoice


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
    certificate: Certificate | None = None
    """Proves the bound, or part of it."""


def space_of(problem: Problem, *, one_type_per_stage: bool = False) -> str:
    """Return which plans an exact solver searches, for people, and what the bound leaves out."""
    limit = f", at most {problem.max_stages} stages" if problem.max_stages else ""
    if problem.constraints.named:
        limit += f", with {' '.join(problem.constraints.named)}"
    replicas = (
        "any replicas of one type" if one_type_per_stage else "any replicas of one or several types"
    )
    branches = (
        " (the graph branches: the bound holds for cuts of this order, not for every order or ideal)"
        if has_branches(problem.inputs.model)
        else ""
    )
    return (
        f"all cuts of the {len(problem.chain)} layers in the graph's order{branches}, device types in any "
        f"order, {replicas} per stage with micro-batches dealt by speed, idle devices "
        f"allowed{limit}; schedule {problem.schedule}, overlap {problem.overlap}, optimizer "
        f"{problem.optimizer}, memory {'limited' if problem.count_memory else 'ignored'}, update "
        f"{'counted' if problem.count_update else 'ignored'}"
    )
