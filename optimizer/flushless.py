"""Planning for schedules without flush: what they ask of a request and of a plan."""

from collections import defaultdict
from collections.abc import Sequence

from stagewright.document import InputError
from stagewright.flushless import FLUSHLESS
from stagewright.graph import LayerGraph
from stagewright.plan import Plan

from .borders import chain_of, stages_that_share_parameters
from .constraints import Constraints, Fixed


def check_flushless(schedule: str, objective: str, solver: str, provers: Sequence[str]) -> None:
    """Raise InputError if a schedule without flush is asked for with what does not go with it."""
    if schedule not in FLUSHLESS:
        return
    if objective != "throughput":
        raise InputError(
            f"--schedule {schedule} has no flush, so a step has no length of its own; plan with "
            "--objective throughput: the time from update to update"
        )
    if solver not in provers:
        raise InputError(
            f"--solver {solver} does not count versions of weights, which --schedule {schedule} keeps; use "
            f"--solver {' or '.join(provers)}"
        )


def constraints_of(schedule: str, constraints: Constraints, model: LayerGraph) -> Constraints:
    """Return constraints by which, without flush, layers that share a trained parameter are in one stage.

    Such stages update at different times, so they may share none.
    """
    if schedule not in FLUSHLESS:
        return constraints
    canonical = model.canonical_names
    users: dict[str, list[str]] = defaultdict(list)
    for layer in chain_of(model):
        for parameter in layer.parameters:
            if parameter.spec.requires_grad:
                users[canonical.get(parameter.name, parameter.name)].append(layer.name)
    together = tuple(tuple(names) for names in users.values() if len(set(names)) > 1)
    if not together:
        return constraints
    fixed = constraints.fixed or Fixed()
    return constraints.with_fixed(fixed.replace(together=(*fixed.together, *together)))


def refuse_shared_parameters(plan: Plan, model: LayerGraph) -> None:
    """Raise InputError if a plan without flush has stages that share a trained parameter."""
    if plan.schedule not in FLUSHLESS:
        return
    sharing = stages_that_share_parameters(model, [stage.layers for stage in plan.stages])
    for stages in sharing:
        if len(stages) > 1:
            raise InputError(
                f"--cuts: stages {', '.join(map(str, stages))} share a parameter, but with --schedule "
                f"{plan.schedule} stages update at different times; cut elsewhere or use --schedule 1f1b"
            )
