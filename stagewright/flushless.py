"""Schedules without flush: when each stage updates its weights, and which version of them a unit uses.

A run is a row of windows, each of as many micro-batches as an update sums over. A rank runs on from window to
window without draining. It updates its stage right after its last backward of a window, together with the
stage's other replicas: their gradient sum is one event, and whoever comes first waits. So a rank's gradients
never mix two windows, and a row alone tells where its updates stand.

pipedream: a forward uses the newest weights that its rank has; the unit's backward uses the same version.
pipedream-2bw: every unit of window w uses, on every stage, the weights after max(0, w - 1) updates, so all
stages agree on the version, and two versions are enough.

It cannot deadlock: let g be the first micro-batch that is not done everywhere. Its ranks have nothing of
earlier micro-batches left, hold no unit (a rank takes its micro-batches in order), and do not wait in an
update, for an update waits only for micro-batches of windows that are over on the waiting rank.

Sources: Narayanan et al., "PipeDream", SOSP 2019 (weight stashing); Narayanan et al., "Memory-Efficient
Pipeline-Parallel DNN Training", ICML 2021 (PipeDream-2BW).
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stagewright.document import InputError
from stagewright.schedule import Action, Pipeline, Updates

FLUSHLESS = ("pipedream", "pipedream-2bw")
"""Of training runs without flush."""


@dataclass(frozen=True, slots=True)
class Update:
    """The update of a stage's weights after a window; all its replicas take part at the same time."""

    stage: int
    window: int

    def __str__(self) -> str:
        return f"update {self.window} of stage {self.stage}"


def without_flush(name: str, pipeline: Pipeline, window: int) -> Pipeline:
    """Return a pipeline that updates after every `window` micro-batches, as a schedule of FLUSHLESS does.

    Raises:
        InputError: a rank has several stages or micro-batches have slices, which the rule of updates is not
            made for.
    """
    if pipeline.num_slices > 1:
        raise InputError(f"schedule {name} knows no token slices; choose a schedule with flush")
    ranks = Counter(worker.rank for workers in pipeline.stages for worker in workers)
    several = [rank for rank, count in sorted(ranks.items()) if count > 1]
    if several:
        raise InputError(
            f"schedule {name} runs one stage on each rank, but rank {several[0]} has {ranks[several[0]]}; "
            "choose a schedule with flush, or give each rank one stage"
        )
    updates = Updates(window=window, is_delayed=name == "pipedream-2bw")
    return dataclasses.replace(pipeline, updates=updates)


class Rounds:
    """The windows that each stage has closed, and so what its replicas may start."""

    def __init__(self, pipeline: Pipeline) -> None:
        assert pipeline.updates is not None
        self._window = pipeline.updates.window
        self._is_delayed = pipeline.updates.is_delayed
        self._number = math.ceil(pipeline.num_microbatches / self._window)
        self._left = [self._dealt(pipeline, stage) for stage in range(len(pipeline.stages))]
        """By stage, rank and window: backwards to come."""
        self._left_of_all = [
            list(map(sum, zip(*left.values(), strict=True))) for left in self._left
        ]
        self._closed = [0] * len(pipeline.stages)

    def _dealt(self, pipeline: Pipeline, stage: int) -> dict[int, list[int]]:
        dealt = {worker.rank: [0] * self._number for worker in pipeline.stages[stage]}
        for microbatch, rank in enumerate(pipeline.routes[stage]):
            dealt[rank][microbatch // self._window] += 1
        return dealt

    def may_start(self, rank: int, action: Action) -> bool:
        """Return whether a rank may start an action as far as updates are concerned."""
        stage, window = action.stage, action.microbatch // self._window
        closed = self._closed[stage]
        if closed == self._number or not self._left[stage][rank][closed]:
            return False  # It waits in the update, for the other replicas.
        if action.kind == "F":
            return not self._is_delayed or window <= closed + 1
        return window == closed

    def add(self, rank: int, action: Action) -> list[Update]:
        """Note that an action is done; return the updates that follow."""
        if action.kind not in "BW":
            return []
        stage, window = action.stage, action.microbatch // self._window
        self._left[stage][rank][window] -= 1
        left = self._left_of_all[stage]
        left[window] -= 1
        updates = []
        while self._closed[stage] < self._number and not left[self._closed[stage]]:
            updates.append(Update(stage, self._closed[stage]))
            self._closed[stage] += 1
        return updates


def unit_versions(updates: Updates, program: Iterable[object]) -> dict[int, int]:
    """Return the version of the weights that each micro-batch of a rank's program uses.

    Version v is that after v updates. The program has the rank's actions and updates in order; what else it
    has is passed over.
    """
    versions: dict[int, int] = {}
    done = 0
    for item in program:
        if isinstance(item, Update):
            done += 1
        elif isinstance(item, Action) and item.kind == "F":
            window = item.microbatch // updates.window
            versions[item.microbatch] = max(0, window - 1) if updates.is_delayed else done
    return versions


def versions_held(updates: Updates, program: Sequence[object]) -> int:
    """Return the most versions of its weights that a rank needs at once: the newest and those to be used."""
    versions = unit_versions(updates, program)
    left = Counter(versions.values())
    newest, most = 0, 1
    for item in program:
        if isinstance(item, Update):
            newest += 1
            most = max(most, 1 + sum(version < newest for version in left))
        elif isinstance(item, Action) and item.kind != "F":
            version = versions[item.microbatch]
            left[version] -= 1
            if not left[version]:
                del left[version]
    return most


def versions_needed(name: str, units: int, fewest_per_window: int) -> int:
    """Return the bound of versions_held for a rank, whatever the number of windows.

    Among its last `units` units a rank has closed ceil((units - 1) / n) windows at most if each has n of its
    micro-batches or more. With schedules that flush there is one version.

    Args:
        name: of the schedule.
        units: the most units that the rank holds between forward and backward.
        fewest_per_window: of all windows, the least number of the rank's micro-batches in one.
    """
    if name == "pipedream-2bw":
        return 2
    if name != "pipedream":
        return 1
    if not fewest_per_window:
        return units + 1
    return 1 + -(-(units - 1) // fewest_per_window)


def versions_allowed(
    name: str, pipeline: Pipeline, units: Sequence[Mapping[int, int]]
) -> list[dict[int, int]]:
    """Return for each stage and rank the most versions that a run without flush lets it hold.

    Args:
        name: of the schedule.
        pipeline: with its updates.
        units: scheduling.units_allowed of it.
    """
    assert pipeline.updates is not None
    window = pipeline.updates.window
    allowed = []
    for stage, route in enumerate(pipeline.routes):
        dealt = [Counter(route[i : i + window]) for i in range(0, len(route), window)]
        allowed.append(
            {
                worker.rank: versions_needed(
                    name,
                    units[stage][worker.rank],
                    min(count[worker.rank] for count in dealt),
                )
                for worker in pipeline.stages[stage]
            }
        )
    return allowed
