"""Named plans to compare with, predicted by the same model and simulator."""

from dataclasses import dataclass, replace

from stagewright.plan import Plan

from .assemble import draft, predict
from .constraints import Fixed
from .costs.tables import Devices, StageTables
from .problem import Problem, StageChoice

SPEED_SHARES = "data parallel over all, shares by speed"
EQUAL_SHARES = "data parallel over all, equal shares"
MOST_ACTIONS = 1_000_000
"""Of one step of a baseline that is simulated: some ten seconds and a gigabyte."""


@dataclass(frozen=True)
class Baseline:
    """What somebody might run without a planner, at the plan's micro-batch size."""

    name: str
    step_ms: float
    """Predicted by the simulator."""
    fits: bool
    """Into memory; true if memory is not counted."""


def baselines_of(tables: StageTables) -> tuple[tuple[Baseline, ...], tuple[str, ...]]:
    """Return the baselines, and the names of those whose step has too many actions to simulate.

    The fastest device alone, data parallel over all, an even split of the layers.
    """
    if tables.problem.cutting != "order":
        tables = StageTables(replace(tables.problem, cutting="order"))
    problem, size = tables.problem, tables.size
    fastest = min(
        problem.inputs.graphs,
        key=lambda kind: (
            tables.times[kind].forward_ms[0, size] + tables.times[kind].backward_ms[0, size]
        ),
    )
    plans: dict[str, tuple[StageChoice, ...]] = {
        f"one {fastest}": (StageChoice(0, size, _one_of(problem, fastest)),)
    }
    if 1 < problem.num_devices <= problem.num_microbatches:
        everything = tuple(len(group.slots) for group in problem.groups)
        plans[SPEED_SHARES] = (StageChoice(0, size, everything),)
    if min(problem.num_devices, size) > 1:
        split = _even_split(problem)
        together = Fixed(together=problem.opaque_groups)
        allowed = together.allowed_stages(problem.sums, problem.position, ())
        if all(allowed[choice.first, choice.last] for choice in split):
            plans["even split of the layers"] = split
    found, left_out = [], []
    for name, choices in plans.items():
        if 2 * len(choices) * problem.num_microbatches > MOST_ACTIONS:
            left_out.append(name)
            continue
        plan = draft(tables, choices)
        found.append(_baseline(name, plan, problem))
        if name == SPEED_SHARES:
            found.append(_baseline(EQUAL_SHARES, _with_equal_shares(plan), problem))
    return tuple(found), tuple(left_out)


def _baseline(name: str, plan: Plan, problem: Problem) -> Baseline:
    prediction = predict(plan, problem)
    return Baseline(name, prediction.timeline.step_ms, not prediction.score.overflows)


def _with_equal_shares(plan: Plan) -> Plan:
    """Return a plan whose replicas take turns, fast or slow."""
    stages = tuple(
        stage.replace(replicas=tuple(r.replace(share=1) for r in stage.replicas))
        for stage in plan.stages
    )
    return plan.replace(stages=stages)


def _one_of(problem: Problem, device_type: str) -> Devices:
    """Return one device of a type, of the first group that has it."""
    first = next(i for i, group in enumerate(problem.groups) if group.device_type == device_type)
    return tuple(int(index == first) for index in range(len(problem.groups)))


def _even_split(problem: Problem) -> tuple[StageChoice, ...]:
    """Return a stage per device, in the order of the slots, with equal numbers of layers up to one.

    If a long chain is thinned, up to the next cut that there is.
    """
    cuts, size = problem.cuts, len(problem.chain)
    order = [
        next(i for i, group in enumerate(problem.groups) if slot in group.slots)
        for slot in problem.inputs.cluster.slots
    ][: len(cuts) - 1]
    edges = [cuts.behind(size * stage // len(order)) for stage in range(len(order) + 1)]
    return tuple(
        StageChoice(
            edges[stage],
            edges[stage + 1],
            tuple(int(index == own) for index in range(len(problem.groups))),
        )
        for stage, own in enumerate(order)
        if edges[stage] < edges[stage + 1]
    )
