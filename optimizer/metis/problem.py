"""What is planned: the model, the devices and the settings, with the measured times at hand."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stagewright.document import InputError

from .formats import DeviceKind, Profile, ProfileFolder, ProfileKey, load_devices


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What Metis takes from its command line and uses."""

    num_layers: int
    global_batch_size: int
    hidden_size: int
    sequence_length: int
    vocab_size: int
    max_tensor_parallel: int
    max_batch_size: int
    min_group_scale: float = 1.0
    """Factor on the smallest group that the search considers."""
    max_permute_length: int = 128
    """The search permutes this many groups at most; it merges equal ones until they are few enough."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not value > 0:
                raise InputError(f"{name} is {value}, expected a positive number")


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive ranks by device type, in rank order: (("V100", 3), ("A100", 5))."""

    counts: tuple[tuple[str, int], ...]

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.counts)

    @property
    def size(self) -> int:
        return sum(count for _, count in self.counts)

    def part(self, start: int, size: int) -> "Span":
        """Return the span of the ranks from start to start + size."""
        end, first, found = start + size, 0, []
        for name, count in self.counts:
            overlap = min(end, first + count) - max(start, first)
            if overlap > 0:
                found.append((name, overlap))
            first += count
        return Span(tuple(found))

    def heads(self, num_replicas: int) -> tuple[str, ...]:
        """Return the type of the first rank of each replica; Metis takes all of a replica for that type."""
        width = self.size // num_replicas
        ranks = [name for name, count in self.counts for _ in range(count)]
        return tuple(ranks[replica * width] for replica in range(num_replicas))

    def is_pure(self, num_replicas: int) -> bool:
        """Return whether every replica has ranks of one type only."""
        width, end = self.size // num_replicas, 0
        for _, count in self.counts[:-1]:
            end += count
            if end % width:
                return False
        return True


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A model on a cluster, under Metis's formulas. Sums and shares are remembered."""

    settings: Settings
    devices: tuple[DeviceKind, ...]
    """By name: the order in which node sequences are tried."""
    folder: ProfileFolder
    degrees: tuple[int, ...] = field(init=False)
    """Tensor-parallel degrees that a stage can have."""
    batch_sizes: tuple[int, ...] = field(init=False)
    """Micro-batch sizes that every device type must have been profiled at."""
    _devices: dict[str, DeviceKind] = field(init=False, repr=False)
    _profiles: dict[tuple[str, int, int], Profile] = field(init=False, repr=False)
    _measured: frozenset[int] = field(init=False, repr=False)
    _sums: dict[tuple[str, int, int, int, int], float] = field(
        init=False, default_factory=dict, repr=False
    )
    _shares: dict[tuple[Span, int, int, int], tuple[int, ...]] = field(
        init=False, default_factory=dict, repr=False
    )

    def __post_init__(self) -> None:
        settings = self.settings
        if self.folder.num_layers != settings.num_layers:
            raise InputError(
                f"{self.folder.path}: profiles have {self.folder.num_layers} layers, --num_layers is "
                f"{settings.num_layers}; name the profiles of the same model"
            )
        profiles = {
            (key.device_type, key.tensor_parallel, key.batch_size): profile
            for key, profile in self.folder.profiles.items()
        }
        degrees = powers_of_two(min(settings.max_tensor_parallel, self.num_devices))
        names = [device.name for device in self.devices]
        measured = {
            size
            for size in {size for _, _, size in profiles if size <= settings.max_batch_size}
            if all((name, degree, size) in profiles for name in names for degree in degrees)
        }
        sizes = powers_of_two(min(settings.max_batch_size, settings.global_batch_size))
        for attribute, value in (
            ("degrees", degrees),
            ("batch_sizes", sizes),
            ("_devices", {device.name: device for device in self.devices}),
            ("_profiles", profiles),
            ("_measured", frozenset(measured)),
        ):
            object.__setattr__(self, attribute, value)
        for name, degree, size in itertools.product(names, degrees, sizes):
            self.profile(name, degree, size)

    @property
    def num_devices(self) -> int:
        return sum(device.count for device in self.devices)

    @property
    def batches(self) -> tuple[int, ...]:
        """The numbers of micro-batches that are tried: the divisors of the global batch, largest first."""
        size = self.settings.global_batch_size
        return tuple(number for number in range(size, 0, -1) if size % number == 0)

    def device(self, name: str) -> DeviceKind:
        return self._devices[name]

    def span(self, node_sequence: Sequence[str]) -> Span:
        """Return all ranks, in the order of a node sequence."""
        return Span(tuple((name, self.device(name).count) for name in node_sequence))

    def profile(self, device_type: str, tensor_parallel: int, batch_size: int) -> Profile:
        """Return a profile.

        Raises:
            InputError: there is none.
        """
        found = self._profiles.get((device_type, tensor_parallel, batch_size))
        if found is None:
            key = ProfileKey(
                device_type=device_type, tensor_parallel=tensor_parallel, batch_size=batch_size
            )
            raise InputError(
                f"{self.folder.path}: {key} is missing; profile it, or lower --max_profiled_tp_degree or "
                "--max_profiled_batch_size"
            )
        return found

    def is_measured(self, batch_size: int) -> bool:
        """Return whether every device type was profiled at a micro-batch size, at every degree."""
        return batch_size in self._measured

    def layers_ms(
        self, device_type: str, degree: int, batch_size: int, start: int, end: int
    ) -> float:
        """Return forward plus backward of the layers from start to end, at a measured batch size."""
        key = (device_type, degree, batch_size, start, end)
        if key not in self._sums:
            times = self.profile(device_type, degree, batch_size).execution_time
            total = 0.0
            for time in times.layer_compute_total_ms[start:end]:
                total += time
            self._sums[key] = total
        return self._sums[key]

    def share_ms(self, device_type: str, degree: int, share: int, start: int, end: int) -> float:
        """Return the time of a share of any size: the sum over its binary digits, largest first."""
        return sum(
            self.layers_ms(device_type, degree, size, start, end) for size in binary_digits(share)
        )

    def shares(
        self, span: Span, num_replicas: int, degree: int, num_samples: int
    ) -> tuple[int, ...]:
        """Return how many samples of a micro-batch each replica gets: in proportion to its speed.

        The speed is that of the whole model at batch size 1 on the type of the replica's first rank. What
        rounding down leaves over goes, one each, to the largest fractions, earlier replicas first.
        """
        key = (span, num_replicas, degree, num_samples)
        if key not in self._shares:
            num_layers = self.settings.num_layers
            speeds = [
                1 / self.layers_ms(name, degree, 1, 0, num_layers)
                for name in span.heads(num_replicas)
            ]
            whole = sum(speeds)
            exact = [num_samples * speed / whole for speed in speeds]
            found = [int(share) for share in exact]
            by_fraction = sorted(range(num_replicas), key=lambda r: found[r] - exact[r])
            for replica in by_fraction[: num_samples - sum(found)]:
                found[replica] += 1
            self._shares[key] = tuple(found)
        return self._shares[key]

    def typed_shares(
        self, span: Span, num_replicas: int, degree: int, num_samples: int
    ) -> tuple[tuple[str, int], ...]:
        """Return the distinct (type, share) pairs of the replicas, without shares of 0."""
        shares = self.shares(span, num_replicas, degree, num_samples)
        pairs = zip(span.heads(num_replicas), shares, strict=True)
        return tuple(dict.fromkeys(pair for pair in pairs if pair[1]))


def load_problem(
    settings: Settings, hostfile: Path, clusterfile: Path, profile_folder: Path
) -> Problem:
    """Return the problem that Metis's files describe.

    Raises:
        InputError: a file is malformed, or a profile that the plans need is missing.
    """
    return Problem(
        settings=settings,
        devices=load_devices(hostfile, clusterfile),
        folder=ProfileFolder.load(profile_folder),
    )


def powers_of_two(largest: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... up to largest."""
    return tuple(1 << exponent for exponent in range(largest.bit_length()))


def binary_digits(number: int) -> tuple[int, ...]:
    """Return the powers of two that add up to a number, largest first."""
    return tuple(
        1 << place for place in range(number.bit_length() - 1, -1, -1) if number >> place & 1
    )
