"""Simulating without flush: how many windows are played, and what one of them takes in the steady state."""

from dataclasses import replace

from stagewright.flushless import FLUSHLESS, Update, without_flush
from stagewright.plan import Plan
from stagewright.program import compile_programs
from stagewright.schedule import Action, Pipeline, Schedule
from stagewright.scheduling import make_schedule, windows_to_fill

STEADY_WINDOWS = 4
"""Windows that are measured, between those in which the pipeline fills and those in which it drains."""


def played(plan: Plan) -> tuple[Pipeline, Schedule]:
    """Return what is simulated of a plan: one step, or without flush enough windows of as many micro-batches.

    Raises:
        InputError: the schedule is without flush, and a rank has several stages.
    """
    if plan.schedule not in FLUSHLESS:
        return plan.pipeline(), plan.rows
    count = 2 * windows_to_fill(plan.pipeline()) + STEADY_WINDOWS
    pipeline = without_flush(plan.schedule, plan.pipeline(), plan.num_microbatches)
    pipeline = replace(pipeline, num_microbatches=count * plan.num_microbatches)
    return pipeline, make_schedule(plan.schedule, pipeline)


def steady_part(plan: Plan, closed_ms: list[float]) -> tuple[float, float]:
    """Return start and end of the windows to measure.

    Args:
        plan: which was played.
        closed_ms: for each window, when its last update ended.
    """
    last = len(closed_ms) - 1 - windows_to_fill(plan.pipeline())
    return closed_ms[last - STEADY_WINDOWS], closed_ms[last]


def updates_after(pipeline: Pipeline, rows: Schedule) -> dict[str, list[int]]:
    """Return for each rank after how many of its actions it updates; empty with flush: at the end."""
    if pipeline.updates is None:
        return {}
    found: dict[str, list[int]] = {}
    for rank, program in compile_programs(pipeline, rows).items():
        done, found[str(rank)] = 0, []
        for item in program:
            done += isinstance(item, Action)
            if isinstance(item, Update):
                found[str(rank)].append(done)
    return found
