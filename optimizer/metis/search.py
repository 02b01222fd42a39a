"""Metis's search: all device groups and numbers of micro-batches, one greedy path of strategies for each.

Device types are permuted in the order of itertools.permutations of their sorted names; Metis permutes a set,
so its results change from run to run (its step count does not). One search step is one change of strategy
that led to a plan, or one partition on the way that exceeded memory; published counts count these.

Source: Um et al., "Metis", USENIX ATC 2024, and the step count and strategy order (use_strat) of its fork
"Improved Intra-Operator Parallelism".
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .balance import balance
from .cost import cost_of
from .groups import device_groups
from .memory import memory_capacity_mb, memory_demand_mb, memory_per_layer_mb, shrunk_capacity
from .plan import MetisPlan
from .problem import Problem, Span

ATTEMPTS = 3
Strategies = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedPlan:
    """A plan and its predicted cost."""

    plan: MetisPlan
    cost_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """Every plan that the search found, the cheapest first."""

    plans: tuple[RankedPlan, ...]
    count: int
    """Search steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What one path of strategies starts from."""

    node_sequence: tuple[str, ...]
    ranks: Span
    groups: tuple[int, ...]
    spans: tuple[Span, ...]
    batches: int
    stages_charged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Partitioning:
    """What came of partitioning the layers for one vector of strategies."""

    partition: tuple[int, ...] | None
    """None: every attempt exceeded memory."""
    attempts: int
    num_exceeding: int
    """Attempts that exceeded memory."""
    spare_mb: tuple[float, ...] | None
    """Memory left in each group under the partition."""
    first_spare_mb: tuple[float, ...] | None
    """Memory left in the first attempt, if that exceeded memory."""


def search(problem: Problem, use_strat: bool = False) -> SearchResult:
    """Return all plans that Metis's search yields.

    Args:
        problem: what to plan.
        use_strat: change the strategy of the stage that lacked most memory in the first failed attempt,
            as the fork does, instead of the one with most replicas.
    """
    path = _Path(problem=problem, use_strat=use_strat)
    plans: list[RankedPlan] = []
    count = 0
    for candidate in candidates(problem):
        for num_steps, plan in path.plans(candidate):
            count += num_steps
            plans.append(RankedPlan(plan=plan, cost_ms=cost_of(problem, plan).total))
    plans.sort(key=lambda ranked: ranked.cost_ms)
    return SearchResult(plans=tuple(plans), count=count)


def candidates(problem: Problem) -> Iterator[Candidate]:
    """Yield every combination of node sequence, device groups and micro-batches, in Metis's order.

    The first node sequence starts with one stage. Every other one starts with the smallest possible number
    of several stages, of which Metis charges the first only, and comes to them again, charged in full.
    """
    settings = problem.settings
    largest = min(problem.num_devices, settings.num_layers)
    groups_of = {
        num_stages: tuple(
            device_groups(
                num_stages,
                problem.num_devices,
                settings.min_group_scale,
                settings.max_permute_length,
            )
        )
        for num_stages in range(1, largest + 1)
    }
    several = [number for number in range(2, largest + 1) if groups_of[number]]
    names = [device.name for device in problem.devices]
    for index, node_sequence in enumerate(itertools.permutations(names)):
        ranks = problem.span(node_sequence)
        once = [1] if index == 0 else several[:1]
        rounds = [(number, 1) for number in once] + [(number, number) for number in several]
        for num_stages, charged in rounds:
            for groups in groups_of[num_stages]:
                spans = _spans(ranks, groups)
                for batches in problem.batches:
                    yield Candidate(
                        node_sequence=node_sequence,
                        ranks=ranks,
                        groups=groups,
                        spans=spans,
                        batches=batches,
                        stages_charged=charged,
                    )


@dataclass(frozen=True, kw_only=True)
class _Path:
    """Walks paths of strategies; remembers what depends on less than the whole candidate."""

    problem: Problem
    use_strat: bool
    demand: tuple[float, ...] = field(init=False)
    _partitions: dict[tuple[float, ...], tuple[int, ...]] = field(default_factory=dict)
    _stage_ms: dict[tuple[Span, tuple[int, int], int], float | None] = field(default_factory=dict)
    _per_layer: dict[tuple[Span, Span, tuple[int, int], int], list[float]] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        name = self.problem.folder.first[0].device_type
        layers = self.problem.profile(name, 1, 1).execution_time.layer_compute_total_ms
        whole = sum(layers)
        object.__setattr__(self, "demand", tuple(layer / whole for layer in layers))

    def plans(self, candidate: Candidate) -> Iterator[tuple[int, MetisPlan]]:
        """Yield the plans of one candidate, each with its search steps.

        The path starts with data parallelism alone and halves one stage's replicas at a time, to twice the
        tensor parallelism. It ends with the first plan that needed no second attempt.
        """
        strategies: Strategies | None = tuple((size, 1) for size in candidate.groups)
        spare: tuple[float, ...] | None = None
        first_spare: tuple[float, ...] | None = None
        num_steps = 0
        while strategies is not None:
            performance = self._performance(candidate, strategies)
            if performance is not None:
                found = self._partition(candidate, strategies, performance)
                num_steps += found.num_exceeding
                spare, first_spare = found.spare_mb, found.first_spare_mb
                if found.partition is not None:
                    yield num_steps, self._plan(candidate, strategies, found.partition)
                    num_steps = 0
                    if found.attempts == 1:
                        return
            strategies = self._halved(strategies, spare, first_spare)
            num_steps += 1

    def _halved(
        self,
        strategies: Strategies,
        spare: tuple[float, ...] | None,
        first_spare: tuple[float, ...] | None,
    ) -> Strategies | None:
        keys: Sequence[float] = [1 / num_replicas for num_replicas, _ in strategies]
        if self.use_strat and first_spare:
            keys = first_spare
        elif spare:
            keys = spare
        for stage in sorted(range(len(strategies)), key=keys.__getitem__):
            num_replicas, degree = strategies[stage]
            if num_replicas > 1:
                halved = (num_replicas // 2, degree * 2)
                return (*strategies[:stage], halved, *strategies[stage + 1 :])
        return None

    def _performance(
        self, candidate: Candidate, strategies: Strategies
    ) -> tuple[float, ...] | None:
        """The speed of each stage, summing to 1; None if a strategy is not within what was profiled."""
        speeds = []
        for span, strategy in zip(candidate.spans, strategies, strict=True):
            key = (span, strategy, candidate.batches)
            if key not in self._stage_ms:
                self._stage_ms[key] = self._whole_model_ms(*key)
            time = self._stage_ms[key]
            if time is None:
                return None
            speeds.append(1 / time)
        whole = sum(speeds)
        return tuple(speed / whole for speed in speeds)

    def _whole_model_ms(self, span: Span, strategy: tuple[int, int], batches: int) -> float | None:
        problem, (num_replicas, degree) = self.problem, strategy
        samples = problem.settings.global_batch_size // batches
        num_layers = problem.settings.num_layers
        size = problem.settings.global_batch_size // num_replicas // batches
        if degree > problem.settings.max_tensor_parallel or not problem.is_measured(size):
            return None
        if len(span.types) == 1:
            return problem.layers_ms(span.types[0], degree, size, 0, num_layers)
        shares = problem.typed_shares(span, num_replicas, degree, samples)
        if max(share for _, share in shares).bit_length() > max(problem.batch_sizes).bit_length():
            return None
        return max(problem.share_ms(name, degree, share, 0, num_layers) for name, share in shares)

    def _partition(
        self, candidate: Candidate, strategies: Strategies, performance: tuple[float, ...]
    ) -> Partitioning:
        capacity_mb = [memory_capacity_mb(self.problem, span) for span in candidate.spans]
        per_layer = [
            self._memory(candidate, span, strategy)
            for span, strategy in zip(candidate.spans, strategies, strict=True)
        ]
        shrunk: tuple[float, ...] | None = performance
        num_exceeding, first_spare = 0, None
        for attempt in range(1, ATTEMPTS + 1):
            if shrunk is None:
                break
            partition = self._balanced(shrunk)
            demand_mb = [
                memory_demand_mb(layers, *partition[stage : stage + 2])
                for stage, layers in enumerate(per_layer)
            ]
            spare = tuple(
                capacity - demand for capacity, demand in zip(capacity_mb, demand_mb, strict=True)
            )
            if min(spare) >= 0:
                return Partitioning(
                    partition=partition,
                    attempts=attempt,
                    num_exceeding=num_exceeding,
                    spare_mb=spare,
                    first_spare_mb=first_spare,
                )
            num_exceeding += 1
            first_spare = first_spare or spare
            shrunk = shrunk_capacity(shrunk, capacity_mb, demand_mb)
        return Partitioning(
            partition=None,
            attempts=num_exceeding,
            num_exceeding=num_exceeding,
            spare_mb=None,
            first_spare_mb=first_spare,
        )

    def _balanced(self, performance: tuple[float, ...]) -> tuple[int, ...]:
        if performance not in self._partitions:
            self._partitions[performance] = balance(performance, self.demand)
        return self._partitions[performance]

    def _memory(self, candidate: Candidate, span: Span, strategy: tuple[int, int]) -> list[float]:
        key = (candidate.ranks, span, strategy, candidate.batches)
        if key not in self._per_layer:
            self._per_layer[key] = memory_per_layer_mb(
                self.problem, candidate.ranks, span, strategy, candidate.batches
            )
        return self._per_layer[key]

    def _plan(
        self, candidate: Candidate, strategies: Strategies, partition: tuple[int, ...]
    ) -> MetisPlan:
        return MetisPlan(
            node_sequence=candidate.node_sequence,
            device_groups=candidate.groups,
            strategies=strategies,
            batches=candidate.batches,
            partition=partition,
            stages_charged=candidate.stages_charged,
        )


def _spans(ranks: Span, groups: tuple[int, ...]) -> tuple[Span, ...]:
    starts = itertools.accumulate(groups, initial=0)
    return tuple(ranks.part(start, size) for start, size in zip(starts, groups, strict=False))
