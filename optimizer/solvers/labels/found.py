"""What a search at scale keeps: the best plan, the bound, and the prices that prove it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from stagewright.optimizer.costs.cost import IntArray
from stagewright.optimizer.problem import StageChoice

from .decide import Bound

Evaluate = Callable[[IntArray], tuple[float, tuple[StageChoice, ...]] | None]
"""From rows (first, behind last, kind, replicas) to the value of the placed plan; None: it does not fit."""


@dataclass(frozen=True)
class Leaf:
    """Prices for the plans whose load is above low_ms, and at most the bound's threshold."""

    low_ms: float
    bound: Bound


@dataclass
class Found:
    """Changed as the search goes on; whatever stops the search, this is its result."""

    evaluate: Evaluate
    deadline: float
    """By time.perf_counter."""
    value_ms: float = float("inf")
    stages: tuple[StageChoice, ...] = ()
    bound_ms: float = 0.0
    leaves: list[Leaf] = field(default_factory=list)
    """Proves part of the bound, or all of it."""
    closed_by_labels: bool = False
    """Whether exhausted labels prove more than the prices."""
    is_stuck: bool = False
    """Nothing is left that could be decided."""
    thresholds: int = 0
    is_infeasible: bool = False
    """Whether it is proven that no plan fits."""
    enough_ms: float = float("inf")
    """A bound above this is enough."""
    enough_gap: float = 0.0
    """Above 0: a smaller gap of a plan that is not above enough_ms is enough."""
    first_ms: float = 0.0
    """The value of the first plan."""

    def offer(self, rows: IntArray | None) -> bool:
        """Take a plan if it is better; return whether it is."""
        evaluated = None if rows is None else self.evaluate(rows)
        if evaluated is None or evaluated[0] >= self.value_ms:
            return False
        self.value_ms, self.stages = evaluated
        self.first_ms = self.first_ms or self.value_ms
        return True

    @property
    def gap(self) -> float:
        return 1 - self.bound_ms / self.value_ms if self.stages else 1.0

    @property
    def until(self) -> float:
        """By time.perf_counter: when a search must end, whatever it has; there must be a plan first."""
        return self.deadline if self.stages else float("inf")

    @property
    def is_late(self) -> bool:
        is_close = 0 < self.gap < self.enough_gap and self.value_ms <= self.enough_ms
        is_enough = is_close or self.bound_ms > self.enough_ms
        return self.is_stuck or is_enough or time.perf_counter() > self.deadline
