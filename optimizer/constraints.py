"""What the user asks of a plan besides being fast: money, deadlines, layers that must stay somewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stagewright.document import Format, InputError, Record, load_record
from stagewright.graph import LayerNode

FIX_FORMAT = Format(name="stagewright.fix", version=1)

BoolArray = NDArray[np.bool_]


class Place(Record):
    """Layers that must sit on devices of one type."""

    layers: tuple[str, ...]
    device_type: str


class Fixed(Record):
    """What a file of fixed layers says."""

    together: tuple[tuple[str, ...], ...] = ()
    """Each: layers that must be in one stage, with all layers between them."""
    on: tuple[Place, ...] = ()

    @classmethod
    def load(cls, path: Path) -> "Fixed":
        return load_record(path, FIX_FORMAT, cls)

    def check(self, path: Path, layers: Sequence[str], device_types: Sequence[str]) -> None:
        """Check that every name in it is a layer that computes or a device type of the cluster.

        Raises:
            InputError: one is not.
        """
        named = [name for group in self.together for name in group]
        named += [name for place in self.on for name in place.layers]
        for name in named:
            if name not in layers:
                shown = ", ".join(layers[:20]) + (", ..." if len(layers) > 20 else "")
                raise InputError(
                    f"{path}: names {name!r}, which is no layer that computes; the layers are {shown}"
                )
        for place in self.on:
            if place.device_type not in device_types:
                raise InputError(
                    f"{path}: device_type is {place.device_type!r}, expected one of "
                    f"{', '.join(device_types)}"
                )

    def allowed_runs(self, chain: Sequence[LayerNode], device_types: Sequence[str]) -> BoolArray:
        """Return (L + 1, L + 1) whether layers i up to, not including, j may be a stage on these types."""
        size = len(chain)
        position = {layer.name: index for index, layer in enumerate(chain)}
        allowed = np.ones((size + 1, size + 1), dtype=bool)
        for group in self.together:
            places = [position[name] for name in group]
            inside = slice(min(places, default=0) + 1, max(places, default=0) + 1)
            allowed[inside, :] = allowed[:, inside] = False
        for place in self.on:
            if set(device_types) != {place.device_type}:
                for name in place.layers:
                    allowed[: position[name] + 1, position[name] + 1 :] = False
        return allowed


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """Limits on the plans that are searched; None: no limit."""

    straight: bool = False
    """One replica per stage."""
    allow_recompute: bool = False
    """Stages may keep only their inputs and run forward again: a choice that is off by default."""
    fixed: Fixed | None = None
    budget_per_hour: float | None = None
    """What the devices that a plan uses may cost."""
    deadline_ms: float | None = None
    """Of a step."""
    period_ms: float | None = None
    """Inference: between two micro-batches."""
    most_devices: int | None = None

    @property
    def named(self) -> tuple[str, ...]:
        """The options that are in force."""
        options = {
            "--straight": self.straight,
            "--allow-recompute": self.allow_recompute,
            "--fix": self.fixed is not None,
            "--budget": self.budget_per_hour is not None,
            "--deadline-ms": self.deadline_ms is not None,
            "--max-period": self.period_ms is not None,
        }
        return tuple(option for option, is_set in options.items() if is_set)


NO_CONSTRAINTS = Constraints()
