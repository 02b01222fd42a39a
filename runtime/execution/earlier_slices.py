"""What a stage keeps of a micro-batch's slices for the slices behind them: keys and values of attention, say.

A stage's forward calls `self.with_earlier(name, value, dim)` and gets what the slices before this one gave
there, and the value itself, joined. Every slice has an autograd graph of its own: what it takes of earlier
slices are leaves. Slices go backward in reversed order, so when a slice does, the gradients that those behind
it have left for what it gave are complete, and its backward starts at them as it does at its outputs.

Source: Li et al., "TeraPipe", ICML 2021 (token slices, keys and values kept per slice).
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from stagewright.schedule import Unit


@dataclass
class _Kept:
    """What one slice gave under one name."""

    value: torch.Tensor
    """Without its graph."""
    gradient: torch.Tensor | None = None
    """The sum of those that slices behind it have left so far."""


@dataclass
class Carried:
    """What one unit has to do with other slices of its micro-batch."""

    taken: list[tuple[torch.Tensor, _Kept]] = field(default_factory=list)
    """Leaves of its graph, and what they are of."""
    given: list[tuple[torch.Tensor, _Kept]] = field(default_factory=list)
    """Values of its graph, and where their gradients come."""

    def add_gradients(self, found: Iterable[torch.Tensor | None]) -> None:
        """Leave the gradients of `taken` for the slices that gave it."""
        for (_, kept), gradient in zip(self.taken, found, strict=True):
            if gradient is not None:
                kept.gradient = gradient if kept.gradient is None else kept.gradient + gradient

    def roots(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return where the unit's backward starts besides its outputs, and the gradients there."""
        return [
            (value, kept.gradient)
            for value, kept in self.given
            if value.requires_grad and kept.gradient is not None
        ]


class EarlierSlices:
    """What one stage keeps of the slices under way; `with_earlier` of its module."""

    def __init__(self) -> None:
        self._kept: dict[int, dict[str, list[_Kept]]] = defaultdict(dict)
        """By micro-batch and name: of every slice that went forward and not backward yet."""
        self._unit = Unit(0)
        self._carried = Carried()

    @property
    def num_held(self) -> int:
        """How many micro-batches it keeps something of."""
        return len(self._kept)

    def begin(self, unit: Unit) -> Carried:
        """Say which unit goes forward next; return what will be noted of it."""
        self._unit, self._carried = unit, Carried()
        return self._carried

    def __call__(self, name: str, value: torch.Tensor, dim: int) -> torch.Tensor:
        """Return what earlier slices gave under a name and then a value, joined; later ones get that, too.

        Args:
            name: of one place in the stage's forward, as a layer's is.
            value: this slice's, with the size 1 or more in dim.
            dim: along which slices follow one another.
        """
        microbatch, piece = self._unit
        if piece is None:
            return value
        kept = self._kept[microbatch].setdefault(name, [])
        if len(kept) == piece:  # Else it goes forward a second time (recomputation).
            kept.append(_Kept(value.detach()))
        trains = torch.is_grad_enabled() and value.is_floating_point()
        leaves = [earlier.value.detach().requires_grad_(trains) for earlier in kept[:piece]]
        if trains:
            self._carried.taken += zip(leaves, kept, strict=False)
            self._carried.given.append((value, kept[piece]))
        return torch.cat([*leaves, value], dim) if leaves else value

    def forget(self, unit: Unit) -> None:
        """Drop what a slice gave, and those behind it: no slice needs it any more."""
        if unit.slice is None or unit.microbatch not in self._kept:
            return
        for kept in self._kept[unit.microbatch].values():
            del kept[unit.slice :]
        if unit.slice == 0:
            del self._kept[unit.microbatch]
