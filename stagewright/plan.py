"""The plan: which stages a model is cut into, which ranks run them, and what that is predicted to cost."""

from functools import cached_property
from pathlib import Path

from stagewright.certificate import Certificate
from stagewright.document import Format, Record, load_record, save_record
from stagewright.schedule import Edge, Kind, Pipeline, Schedule, Worker
from stagewright.scheduling import FORWARD_ONLY, TRAINING_SCHEDULES, make_schedule
from stagewright.value import ValueSpec, tensors_of

PLAN_FORMAT = Format(
    name="stagewright.plan",
    version=9,
    upgrades={
        1: dict,  # Version 2 adds stages[].recompute, false where it is left out.
        2: dict,  # Version 3 adds autocast, null where left out, and values that depend on the data.
        3: dict,  # Version 4 adds proof.every_cut and certificates[].cuts, which may be left out.
        4: dict,  # Version 5 adds recomputation and money to certificates, none where left out.
        5: dict,  # Version 6 adds the two parts of predicted backwards, null where left out.
        6: dict,  # Version 7 adds certificates for every cut, none where left out.
        7: dict,  # Version 8 adds proof.mixed_types, certificates[].mixes_types and is_over_sets, optional.
        8: dict,  # Version 9 adds certificates[].period_ms, null where left out.
    },
)


class ReplicaPrediction(Record):
    """What one replica is predicted to take."""

    forward_ms: float
    """One micro-batch."""
    backward_ms: float
    """One micro-batch."""
    reduce_ms: float
    """The gradient sum over the ranks that share its parameters, once a step."""
    update_ms: float
    """The optimizer's update, once a step."""
    peak_bytes: int
    backward_input_ms: float | None = None
    """The part of the backward that other stages wait for (I), recomputation included; None: not measured."""
    backward_weight_ms: float | None = None
    """The rest, which makes gradients of parameters (W)."""

    def action_ms(self, kind: Kind) -> float:
        """Return the time of an action.

        Parts that were not measured are half the backward each: a product of matrices needs as much for each
        of its factors.
        """
        if kind == "F":
            return self.forward_ms
        part_ms = {"I": self.backward_input_ms, "W": self.backward_weight_ms}.get(
            kind, self.backward_ms
        )
        return self.backward_ms / 2 if part_ms is None else part_ms


class Replica(Record):
    """One rank that runs a stage, and its share of the micro-batches."""

    rank: int
    server: str
    device_type: str
    share: int
    """Of every sum-of-shares micro-batches of the stage, this many are dealt to it."""
    predicted: ReplicaPrediction

    def __post_init__(self) -> None:
        if self.rank < 0 or self.share < 1:
            raise ValueError(
                f"rank {self.rank} has share {self.share}; expected rank >= 0 and share >= 1"
            )


class Stage(Record):
    """A run of layers and the replicas that compute it."""

    layers: tuple[str, ...]
    replicas: tuple[Replica, ...]
    recompute: bool = False
    """Whether it keeps only its inputs for the backward, and runs forward again before it."""

    def __post_init__(self) -> None:
        if not self.layers or not self.replicas:
            raise ValueError("a stage needs at least one layer and one replica")
        ranks = [replica.rank for replica in self.replicas]
        if len(set(ranks)) < len(ranks):
            raise ValueError(
                f"a stage has replicas with the ranks {ranks}, expected each rank once"
            )


class NamedValue(Record):
    """The value of one layer."""

    layer: str
    spec: ValueSpec


class Border(Record):
    """What one stage sends to a later one for every micro-batch."""

    source: int
    target: int
    values: tuple[NamedValue, ...]

    @property
    def carries_gradient(self) -> bool:
        """Whether a gradient comes back."""
        return any(t.requires_grad for value in self.values for t in tensors_of(value.spec))

    def forward_bytes(self, batch_size: int) -> int:
        """Return the bytes sent for one micro-batch."""
        return sum(t.bytes_at(batch_size) for value in self.values for t in tensors_of(value.spec))

    def backward_bytes(self, batch_size: int) -> int:
        """Return the bytes of gradients that come back for one micro-batch."""
        tensors = (t for value in self.values for t in tensors_of(value.spec))
        return sum(t.bytes_at(batch_size) for t in tensors if t.requires_grad)


class ModelInput(Record):
    """A value that the model receives; every stage that takes it loads it itself."""

    layer: str
    key: int | str
    spec: ValueSpec


class EveryCut(Record):
    """What is known about all cuts of a graph if the planner searched only some of them."""

    lower_bound: float
    """No plan, whatever its cuts, has a smaller value."""
    method: str
    """How it was found, for people."""


class MixedTypes(Record):
    """What is known about stages of several device types if the space has one type per stage."""

    lower_bound: float
    """No plan, with stages of one or several types, has a smaller value."""


class Proof(Record, omit_defaults=True):
    """How good the plan is known to be."""

    solver: str
    objective: str
    """What was minimised, with its unit: "step_ms"."""
    value: float
    """The plan's value under the planner's formula."""
    lower_bound: float
    """No plan in the search space has a smaller value."""
    space: str
    """Which plans were searched, for people."""
    every_cut: EveryCut | None = None
    """None: the space has all cuts of the graph, or nothing is known."""
    mixed_types: MixedTypes | None = None
    """None: the space has stages of several types, or nothing is known."""
    certificates: tuple[Certificate, ...] = ()
    """Prices that prove a lower bound, for every micro-batch size that was searched; empty: none was made."""

    @property
    def gap(self) -> float:
        """How far the value may be above the optimum of the space, as a fraction of the value."""
        return (self.value - self.lower_bound) / self.value if self.value else 0.0

    @property
    def mixed_types_gap(self) -> float | None:
        """How far the value may be above the optimum with stages of several types; None: nothing is known."""
        if self.mixed_types is None:
            return None
        return (self.value - self.mixed_types.lower_bound) / self.value if self.value else 0.0

    @property
    def every_cut_gap(self) -> float | None:
        """How far the value may be above the optimum over all cuts; None: nothing is known but `gap`."""
        if self.every_cut is None:
            return None
        return (self.value - self.every_cut.lower_bound) / self.value if self.value else 0.0


class Source(Record):
    """A file that the plan was made from."""

    role: str
    """"cluster" or "graph:<device type>"."""
    path: str
    """Relative to the plan file."""
    sha256: str


class Plan(Record, dict=True):
    """Stages, replicas and schedule, with everything that the generator and the runtime need to know."""

    task: str
    factory: str
    structure_sha256: str
    dtype: str
    """Of the parameters."""
    autocast: str | None = None
    """The dtype of mixed precision (torch.autocast) that it was profiled in; None: all in `dtype`."""
    microbatch_size: int
    num_microbatches: int
    schedule: str
    stages: tuple[Stage, ...]
    borders: tuple[Border, ...]
    inputs: tuple[ModelInput, ...]
    slowdowns: dict[str, float] = {}
    """For each emulated device type, by how much the runtime slows its ranks down."""
    predicted_step_ms: float
    """By the simulator."""
    proof: Proof
    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        if self.microbatch_size < 1 or self.num_microbatches < 1:
            raise ValueError("microbatch_size and num_microbatches must be at least 1")
        known = (*TRAINING_SCHEDULES, FORWARD_ONLY)
        if self.schedule not in known:
            raise ValueError(f"schedule is {self.schedule!r}, expected one of {', '.join(known)}")
        if not self.stages:
            raise ValueError("stages is empty, expected at least one stage")
        ranks = sorted({replica.rank for stage in self.stages for replica in stage.replicas})
        if ranks != list(range(len(ranks))):
            raise ValueError(
                f"the replicas have the ranks {ranks}, expected 0 to {len(ranks) - 1}, each used"
            )
        for border in self.borders:
            if not 0 <= border.source < border.target < len(self.stages):
                raise ValueError(
                    f"a border goes from stage {border.source} to stage {border.target}, "
                    f"expected an earlier to a later one of {len(self.stages)} stages"
                )
        ends = [(border.source, border.target) for border in self.borders]
        if len(set(ends)) < len(ends):
            raise ValueError(f"the borders join the stages {ends}, expected each pair once")

    @classmethod
    def load(cls, path: Path) -> "Plan":
        return load_record(path, PLAN_FORMAT, cls)

    def save(self, path: Path) -> None:
        save_record(path, PLAN_FORMAT, self)

    @property
    def is_inference(self) -> bool:
        """Whether the plan runs forwards only; such a plan cannot train."""
        return self.schedule == FORWARD_ONLY

    @property
    def num_ranks(self) -> int:
        return 1 + max(replica.rank for stage in self.stages for replica in stage.replicas)

    @cached_property
    def stages_of_ranks(self) -> dict[int, dict[int, Replica]]:
        """By rank, the stages that it runs and its place in each."""
        found: dict[int, dict[int, Replica]] = {rank: {} for rank in range(self.num_ranks)}
        for index, stage in enumerate(self.stages):
            for replica in stage.replicas:
                found[replica.rank][index] = replica
        return found

    @property
    def batch_size(self) -> int:
        """Samples in one step."""
        return self.microbatch_size * self.num_microbatches

    def pipeline(self, num_microbatches: int | None = None) -> Pipeline:
        """Return what the schedules need to know, for the plan's number of micro-batches or another."""
        return Pipeline(
            stages=tuple(
                tuple(Worker(rank=replica.rank, share=replica.share) for replica in stage.replicas)
                for stage in self.stages
            ),
            edges=tuple(
                Edge(source=b.source, target=b.target, carries_gradient=b.carries_gradient)
                for b in self.borders
            ),
            num_microbatches=num_microbatches or self.num_microbatches,
        )

    @cached_property
    def rows(self) -> Schedule:
        """The plan's schedule: what every rank does, in order."""
        return make_schedule(self.schedule, self.pipeline())
