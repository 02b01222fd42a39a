"""The closed formula for stages that a solver chose, without the tables of every other run of layers."""

from collections.abc import Sequence

import numpy as np

from stagewright.optimizer.problem import StageChoice

from .cost import objective_ms, units_held, versions_held, window_rounds
from .tables import StageTables


def value_of(tables: StageTables, choices: tuple[StageChoice, ...]) -> float | None:
    """Return the objective of a plan, in ms; None if a stage does not fit into memory or the period."""
    problem = tables.problem
    behind_ms = load_ms = 0.0
    replicas_behind = 0
    for index in reversed(range(len(choices))):
        choice = choices[index]
        place = tables.place_of(choices[index - 1].devices) if index else 0
        stage = tables.stage(choice, place)
        replicas_behind += sum(choice.devices)
        units = units_held(
            problem.schedule, stage.counts, problem.num_microbatches, replicas_behind
        )
        versions = versions_held(problem.schedule, units, stage.counts)
        held = zip(units.tolist(), versions.tolist(), strict=True)
        if problem.count_memory and not _fits(tables, choice, list(held)):
            return None
        slope, intercept = window_rounds(problem.objective, stage.replica_ms, stage.counts, units)
        window_ms = float((slope * behind_ms + intercept).max())
        load_ms = max(load_ms, float(stage.load_ms), window_ms)
        behind_ms += float(stage.latency_ms) + float(stage.incoming_ms)
    if load_ms > problem.most_load_ms:
        return None
    return objective_ms(problem.objective, behind_ms, load_ms)


def _fits(tables: StageTables, choice: StageChoice, held: Sequence[tuple[int, int]]) -> bool:
    """Return whether a stage fits whose replicas hold some units and versions of the weights each."""
    at = (choice.first, choice.last)
    distinct = dict.fromkeys(zip(tables.types_of(choice.devices), held, strict=True))
    return all(
        float(tables.memory(kind, np.array(float(units)), at, choice.recompute, versions))
        <= tables.problem.memory_limit(kind)
        for kind, (units, versions) in distinct
    )
