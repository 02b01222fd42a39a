"""Stages that the user fixes instead of a solver: cuts, replicas and device types from the command line."""

import re
from dataclasses import dataclass

from stagewright.document import InputError

from .assemble import draft, predict
from .costs.tables import StageTables
from .flushless import refuse_shared_parameters
from .problem import Problem, StageChoice
from .solvers.solution import Solution


@dataclass(frozen=True)
class GivenStages:
    """What --cuts, --replicas and --types say."""

    cuts: tuple[str, ...]
    """The first layer of every stage but the first."""
    replicas: tuple[int, ...]
    """Per stage."""
    types: tuple[str, ...] = ()
    """Per stage a device type, or one per replica as in "fast+slow"; none: devices in rank order."""
    equal_shares: bool = False
    """Whether replicas take turns, fast or slow, instead of by speed."""

    @classmethod
    def parse(
        cls,
        cuts: str | None,
        replicas: str | None,
        types: str | None,
        *,
        equal_shares: bool = False,
    ) -> "GivenStages":
        """Return what three comma-separated texts say; replicas are 1 where they are not given.

        Raises:
            InputError: the numbers of stages disagree, or a number of replicas is no number.
        """
        cut_names = tuple(cuts.split(",")) if cuts else ()
        num_stages = len(cut_names) + 1
        counts = replicas.split(",") if replicas else ["1"] * num_stages
        for count in counts:
            if not re.fullmatch(r"[1-9]\d{0,5}", count, re.ASCII):
                raise InputError(
                    f"--replicas has {count!r}, expected numbers from 1: --replicas 3,1"
                )
        kinds = tuple(types.split(",")) if types else ()
        for option, found in (("--replicas", counts), ("--types", kinds)):
            if found and len(found) != num_stages:
                raise InputError(
                    f"{option} has {len(found)} entries, but --cuts makes {num_stages} stages; give one "
                    "entry per stage"
                )
        return cls(
            cuts=cut_names,
            replicas=tuple(map(int, counts)),
            types=kinds,
            equal_shares=equal_shares,
        )

    def choices(self, problem: Problem) -> tuple[StageChoice, ...]:
        """Return the stages.

        Raises:
            InputError: a layer or a type is unknown, cuts do not rise, or the cluster has too few devices.
        """
        edges = self.edges(problem)
        free = [len(group.slots) for group in problem.groups]
        choices = []
        for stage, count in enumerate(self.replicas):
            devices = [0] * len(free)
            for kind in self._types(stage, count, problem):
                group = self._take(problem, free, kind)
                free[group] -= 1
                devices[group] += 1
            if count > problem.num_microbatches:
                raise InputError(
                    f"--replicas gives stage {stage} {count} replicas, but there are only "
                    f"{problem.num_microbatches} micro-batches of {problem.microbatch_size} samples; use "
                    "fewer replicas or smaller micro-batches"
                )
            choices.append(StageChoice(edges[stage], edges[stage + 1], tuple(devices)))
        return tuple(choices)

    def edges(self, problem: Problem) -> list[int]:
        """Return the numbers of the cuts (Problem.cuts), from before the first layer to behind the last.

        Raises:
            InputError: a layer is unknown, or the cuts do not rise.
        """
        assert problem.cuts.is_chain
        positions = [0, *self._positions(problem), len(problem.chain)]
        return [problem.cuts.behind(position) for position in positions]

    def _positions(self, problem: Problem) -> list[int]:
        positions = problem.position
        found: list[int] = []
        for name in self.cuts:
            if name not in positions:
                raise InputError(
                    f"--cuts names {name!r}, which is no layer that computes; the layers are "
                    f"{', '.join(list(positions)[:20])}{', ...' if len(positions) > 20 else ''}"
                )
            if positions[name] <= (found[-1] if found else 0):
                raise InputError(
                    f"--cuts: {name!r} is not behind the cut before it; name the first layer of each stage "
                    "but the first, in the model's order"
                )
            found.append(positions[name])
        return found

    def _types(self, stage: int, count: int, problem: Problem) -> list[str | None]:
        """Return the device type of each replica; None for the first free device."""
        if not self.types:
            return [None] * count
        kinds = self.types[stage].split("+")
        for kind in kinds:
            if kind not in problem.inputs.graphs:
                raise InputError(
                    f"--types has {kind!r}, expected one of {', '.join(problem.inputs.graphs)}"
                )
        if len(kinds) not in (1, count):
            raise InputError(
                f"--types gives stage {stage} {len(kinds)} types for {count} replicas; give one, or one per "
                "replica: fast+slow+slow"
            )
        return [*kinds] if len(kinds) == count else [kinds[0]] * count

    def _take(self, problem: Problem, free: list[int], kind: str | None) -> int:
        """Return the first group with a free device of a type."""
        for index, group in enumerate(problem.groups):
            if free[index] and kind in (None, group.device_type):
                return index
        what = "devices" if kind is None else f"devices of type {kind!r}"
        raise InputError(
            f"{problem.inputs.cluster_path}: has too few {what} for --replicas "
            f"{','.join(map(str, self.replicas))}; use fewer replicas or a larger cluster"
        )


def scored_plan(
    problem: Problem, choices: tuple[StageChoice, ...], stages_per_rank: int = 1
) -> Solution | None:
    """Return the user's plan scored; None if it does not fit into memory."""
    plan = draft(StageTables(problem), choices, stages_per_rank)
    refuse_shared_parameters(plan, problem.inputs.model)
    prediction = predict(plan, problem)
    if prediction.score.overflows:
        return None
    return Solution(
        solver="given by the user",
        stages=choices,
        value_ms=prediction.value_ms,
        bound_ms=0.0,
        space="the one plan that the user gave",
        evaluated=1,
        stages_per_rank=stages_per_rank,
    )
