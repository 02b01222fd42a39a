"""What the user asks of a plan besides being fast: money, deadlines, layers that must stay somewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stagewright.document import Format, InputError, Record, load_record
from stagewright.graph import LayerNode

from .branching.cuts import BoolArray
from .branching.sums import Counted, StageSums

FIX_FORMAT = Format(name="stagewright.fix", version=1)


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

    def edges_in(self, chain: Sequence[LayerNode]) -> tuple[str, ...]:
        """Return the layers at and behind the ends of every group and place, as far as there are any."""
        position = {layer.name: index for index, layer in enumerate(chain)}
        groups = [*self.together, *(place.layers for place in self.on)]
        ends = {
            index
            for group in groups
            if group
            for index in (
                min(position[name] for name in group),
                max(position[name] for name in group) + 1,
            )
        }
        return tuple(chain[index].name for index in sorted(ends) if 0 < index < len(chain))

    def allowed_stages(
        self, sums: StageSums, position: Mapping[str, int], device_types: Sequence[str]
    ) -> BoolArray:
        """Return (n + 1, n + 1) whether what is between two cuts may be a stage on these types.

        Args:
            sums: of the cuts.
            position: of each layer in the chain.
        """
        groups = [tuple(sorted(position[name] for name in group)) for group in self.together]
        parted = [Counted(1.0, layers) for layers in groups if layers]
        found = sums.any_of(parted) - sums.all_of(parted)
        for place in self.on:
            if place.layers and set(device_types) != {place.device_type}:
                layers = tuple(sorted(position[name] for name in place.layers))
                found += sums.any_of([Counted(1.0, layers)])
        forbidden: BoolArray = found > 0.5
        return ~forbidden


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

    def with_fixed(self, fixed: Fixed) -> "Constraints":
        """Return these constraints with other fixed layers."""
        return replace(self, fixed=fixed)

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
