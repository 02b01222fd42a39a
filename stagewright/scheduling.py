"""Makes schedules: pure functions of a pipeline, for any replica counts, shares and numbers of micro-batches.

A schedule is the trace of one simulated run in which every stage takes as long for a micro-batch as every
other (a balanced plan), a backward twice as long as a forward, and messages take no time. As the rows of all
ranks come from one run, they cannot contradict one another.

Sources: Huang et al., "GPipe", NeurIPS 2019; Narayanan et al., "PipeDream", SOSP 2019, and
"Efficient Large-Scale Language Model Training on GPU Clusters", SC 2021 (1F1B with flush); Qi et al., "Zero
Bubble Pipeline Parallelism", ICLR 2024 (ZB-H1).
"""

import math

from stagewright.document import InputError
from stagewright.flushless import FLUSHLESS, without_flush
from stagewright.interleaving import interleaved_schedule
from stagewright.schedule import Action, Pipeline, Schedule
from stagewright.schedule_run import Run, split_by_share

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero-bubble")
"""Of training steps, with a flush at the end of each."""
TRAINING_SCHEDULES = (*SCHEDULES, *FLUSHLESS)
INTERLEAVED = "interleaved"
PLANNED_SCHEDULES = ("gpipe", "1f1b", INTERLEAVED, *FLUSHLESS)
"""Those whose memory the planner's cost model knows; the others are chosen when a plan is run."""
FORWARD_ONLY = "forward"
"""The schedule of inference: every forward, no backward."""


def make_schedule(name: str, pipeline: Pipeline) -> Schedule:
    """Return the rows of a schedule.

    gpipe: every rank runs all its forwards, then all its backwards.
    1f1b: a rank runs a forward while it holds fewer units than the replicas behind it need to stay busy
    (`units_allowed`), else a backward. (Two backwards in a row, where replicas finish together, would starve
    one of them.)
    interleaved: 1f1b in which a rank goes through its several stages in rounds (`interleaving`).
    zero-bubble: 1f1b with the backward in two parts; the gradients of the inputs (I) as soon as they can be,
    those of the weights (W) where the rank would idle. A stage that sends no gradient back has no I.
    pipedream, pipedream-2bw: 1f1b that runs on through the updates of the pipeline (flushless.py), of which
    there is one, at the end, if it has none.
    forward: every forward, no backward.

    Raises:
        InputError: there is no schedule of that name, or a rank has several stages and none may.
    """
    if name == "gpipe":
        everything = {worker.rank: pipeline.num_units for w in pipeline.stages for worker in w}
        return Run(pipeline, [everything] * len(pipeline.stages), forwards_first=True).trace()
    if name == INTERLEAVED:
        return interleaved_schedule(pipeline)
    if name == FORWARD_ONLY:
        return forward_schedule(pipeline)
    if name in ("1f1b", "zero-bubble"):
        most = units_held_at_most(pipeline) if name == "zero-bubble" else None
        return Run(pipeline, units_allowed(pipeline), most).trace()
    if name in FLUSHLESS:
        window = pipeline.updates.window if pipeline.updates else pipeline.num_microbatches
        return Run(without_flush(name, pipeline, window), units_allowed(pipeline)).trace()
    raise InputError(f"schedule is {name!r}, expected one of {', '.join(TRAINING_SCHEDULES)}")


def forward_schedule(pipeline: Pipeline) -> Schedule:
    """Return the rows of an evaluation: every forward, no backward."""
    rows: dict[int, list[Action]] = {rank: [] for rank in pipeline.ranks}
    for microbatch, piece in pipeline.units:
        for stage, ranks in enumerate(pipeline.routes):
            rows[ranks[microbatch]].append(Action(stage, "F", microbatch, piece))
    return Schedule({rank: tuple(row) for rank, row in rows.items()})


def units_allowed(pipeline: Pipeline) -> list[dict[int, int]]:
    """Return for each stage and rank how many units 1F1B lets it hold between forward and backward.

    A stage holds one unit for each replica from itself to the last stage; its replicas split them by share.
    Source: the number of in-flight minibatches of PipeDream, SOSP 2019, section 3.2, with unequal shares.
    """
    behind = [sum(map(len, pipeline.stages[stage:])) for stage in range(len(pipeline.stages))]
    return _split(pipeline, behind)


def windows_to_fill(pipeline: Pipeline) -> int:
    """Return the steps in which a run without flush fills, and as many in which it drains."""
    units = sum(units_allowed(pipeline)[0].values())
    return math.ceil(units / pipeline.num_microbatches) + 1


def units_held_at_most(pipeline: Pipeline) -> list[dict[int, int]]:
    """Return for each stage and rank how many units zero-bubble lets it hold until their weights' gradients.

    As many as 1F1B's first stage: one for each replica of all stages, split by share.
    """
    everyone = sum(map(len, pipeline.stages))
    return _split(pipeline, [everyone] * len(pipeline.stages))


def _split(pipeline: Pipeline, units: list[int]) -> list[dict[int, int]]:
    """Return each stage's units split over its replicas by share, rounded up.

    A micro-batch in slices is backward when all its slices are forward: one may be under way besides.
    """
    more = pipeline.num_slices - 1
    return [
        {rank: part + more for rank, part in split_by_share(pipeline, stage, count).items()}
        for stage, count in enumerate(units)
    ]
