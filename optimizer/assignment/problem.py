"""Items to be dealt to accelerators and CPUs, the problem that dnn-partitioning states.

Each device runs its items one after another; an accelerator also waits for its transfers, which go through
the host's memory and do not overlap with computing. The slowest device sets the time between two samples.

Source: Tarnawski et al., "Efficient Algorithms for Device Placement of DNN Graph Operators", NeurIPS 2020.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["accelerator", "cpu"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """What is dealt as one: an operator, or several that must stay together."""

    accelerator_ms: float
    cpu_ms: float
    num_bytes: int
    supported: bool
    """Whether an accelerator can run it."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """A value that several items share: an accelerator with some of them but not all pays for it once."""

    cost_ms: float
    items: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class AssignmentProblem:
    """Items, their order, what they exchange, and the devices."""

    items: tuple[Item, ...]
    order: tuple[tuple[int, int], ...]
    """Pairs (before, after): a contiguous split has every device behind the devices it depends on."""
    transfers: tuple[Transfer, ...]
    num_accelerators: int
    num_cpus: int
    accelerator_bytes: int

    def load_ms(self, kind: Kind, held: Iterable[int]) -> float:
        """Return the time of a device per sample; infinite if it cannot hold these items."""
        held = sorted(set(held))
        if kind == "cpu":
            return math.fsum(self.items[item].cpu_ms for item in held)
        own = [self.items[item] for item in held]
        if not all(item.supported for item in own):
            return math.inf
        if sum(item.num_bytes for item in own) > self.accelerator_bytes:
            return math.inf
        inside = set(held)
        cut = (t.cost_ms for t in self.transfers if t.items & inside and not t.items <= inside)
        return math.fsum(item.accelerator_ms for item in own) + math.fsum(cut)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One device that is used."""

    kind: Kind
    items: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a solver found, devices in pipeline order."""

    solver: str
    parts: tuple[Part, ...]
    value_ms: float
    bound_ms: float
    """No assignment of the space is faster."""
    space: str
    evaluated: int
    """Pairs of ideals, or branches, looked at."""
