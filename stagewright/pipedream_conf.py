"""PipeDream's conf JSONs: which stage holds each generated module, and which ranks run each stage.

    {"module_to_stage_map": [0, 1, 1], "stage_to_rank_map": {"0": [0, 1, 2], "1": [3]}}

The modules are the stages in order and then the criterion, which is in the last stage. PipeDream deals
micro-batches to the replicas of a stage in turn: there are no unequal shares in this format.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import msgspec

from stagewright.document import InputError, Record, read_bytes, write_atomically
from stagewright.plan import Plan


class Conf(Record):
    """One conf file."""

    module_to_stage_map: tuple[int, ...]
    stage_to_rank_map: dict[str, tuple[int, ...]]
    """From "0", "1", ... to ranks."""
    stage_to_depth_map: dict[str, int] | None = None
    """How many forwards each stage runs before its first backward; None: as PipeDream computes it."""

    def __post_init__(self) -> None:
        stages = [str(stage) for stage in range(len(self.stage_to_rank_map))]
        if not stages or sorted(self.stage_to_rank_map) != sorted(stages):
            raise ValueError(
                f"stage_to_rank_map names the stages {sorted(self.stage_to_rank_map)}, "
                'expected "0", "1", ... with none left out'
            )
        if {str(stage) for stage in self.module_to_stage_map} != set(stages):
            raise ValueError(
                f"module_to_stage_map is {list(self.module_to_stage_map)}, expected each of the "
                f"stages {', '.join(stages)}"
            )
        ranks = sorted(rank for stage in stages for rank in self.stage_to_rank_map[stage])
        if not all(self.stage_to_rank_map.values()) or ranks != list(range(len(ranks))):
            raise ValueError(
                f"stage_to_rank_map has the ranks {ranks}, expected 0, 1, ... each once, "
                "and at least one for each stage"
            )
        depths = self.stage_to_depth_map
        if depths is not None and (sorted(depths) != sorted(stages) or min(depths.values()) < 0):
            raise ValueError(
                f"stage_to_depth_map is {depths}, expected a number from 0 for each of the stages "
                f"{', '.join(stages)}"
            )

    @property
    def ranks(self) -> tuple[tuple[int, ...], ...]:
        """The ranks of each stage."""
        return tuple(self.stage_to_rank_map[str(s)] for s in range(len(self.stage_to_rank_map)))

    @classmethod
    def load(cls, path: Path) -> "Conf":
        """Return the conf in a file.

        Raises:
            InputError: the file is no JSON, a field is unknown, missing or ill-typed, or the maps do not fit.
        """
        try:
            return msgspec.json.decode(read_bytes(path), type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"{path}: {error}; expected a PipeDream conf file") from None

    def save(self, path: Path) -> None:
        content = msgspec.to_builtins(self)
        if self.stage_to_depth_map is None:
            del content["stage_to_depth_map"]
        write_atomically(path, msgspec.json.encode(content) + b"\n")


def data_parallel_conf(plan: Plan) -> Conf:
    """Return dp_conf: every rank of the plan runs all of its stages as one."""
    return _data_parallel(len(plan.stages), plan.num_ranks)


def model_parallel_conf(plan: Plan) -> Conf:
    """Return mp_conf: one rank for each of the plan's stages, without replicas."""
    return _model_parallel(len(plan.stages))


def hybrid_conf(plan: Plan) -> Conf:
    """Return hybrid_conf: the plan itself.

    Raises:
        InputError: the plan has unequal shares in a stage or a rank in two stages, which the format lacks.
    """
    for stage, found in enumerate(plan.stages):
        shares = [replica.share for replica in found.replicas]
        if len(set(shares)) > 1:
            raise InputError(
                f"stage {stage} has replicas with the shares {shares}, but PipeDream's conf files know "
                "equal shares only; plan without unequal replicas"
            )
    try:
        return Conf(
            module_to_stage_map=_modules(len(plan.stages)),
            stage_to_rank_map={
                str(stage): tuple(replica.rank for replica in found.replicas)
                for stage, found in enumerate(plan.stages)
            },
        )
    except ValueError as error:
        raise InputError(f"PipeDream's conf files cannot hold this plan: {error}") from None


def save_confs(plan: Plan, folder: Path) -> tuple[Path, ...]:
    """Write dp_conf.json, mp_conf.json and hybrid_conf.json into a folder; return their paths.

    Raises:
        InputError: as `hybrid_conf` does, before anything is written.
    """
    confs = {
        "dp_conf.json": data_parallel_conf(plan),
        "mp_conf.json": model_parallel_conf(plan),
        "hybrid_conf.json": hybrid_conf(plan),
    }
    for name, conf in confs.items():
        conf.save(folder / name)
    return tuple(folder / name for name in confs)


def confs_of(num_stages: int, replicas: Sequence[int] | None) -> dict[str, Conf]:
    """Return the conf files of a pipeline by name; its ranks are numbered from stage 0 on.

    Args:
        replicas: the ranks of each stage; None: one each, and there is no hybrid_conf.json.

    Raises:
        InputError: there are not as many replicas as stages.
    """
    if replicas is not None and len(replicas) != num_stages:
        raise InputError(
            f"the map of ranks names {len(replicas)} stages, expected the graph's {num_stages}"
        )
    num_ranks = num_stages if replicas is None else sum(replicas)
    confs = {
        "dp_conf.json": _data_parallel(num_stages, num_ranks),
        "mp_conf.json": _model_parallel(num_stages),
    }
    if replicas is not None:
        ends = list(itertools.accumulate(replicas))
        confs["hybrid_conf.json"] = Conf(
            module_to_stage_map=_modules(num_stages),
            stage_to_rank_map={
                str(stage): tuple(range(end - count, end))
                for stage, (end, count) in enumerate(zip(ends, replicas, strict=True))
            },
        )
    return confs


def _data_parallel(num_stages: int, num_ranks: int) -> Conf:
    return Conf(
        module_to_stage_map=(0,) * (num_stages + 1),
        stage_to_rank_map={"0": tuple(range(num_ranks))},
    )


def _model_parallel(num_stages: int) -> Conf:
    return Conf(
        module_to_stage_map=_modules(num_stages),
        stage_to_rank_map={str(stage): (stage,) for stage in range(num_stages)},
    )


def _modules(num_stages: int) -> tuple[int, ...]:
    """Return the stage of each module: the stages in order, then the criterion in the last."""
    return (*range(num_stages), num_stages - 1)
