"""Metis's files: profiles (one per device type, tensor parallelism and batch size), hostfile, clusterfile.

Read strictly: what Metis would skip, misread or crash on is one line that names the file. Files are read in
the order of their names: Metis takes optimizer, batch generator and parameters from the first.

Where this differs from Metis: `slots=16` means 16 (Metis reads one digit, 1); nodes may have unequal slots;
every device type that has profiles is allowed, not four only.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from stagewright.document import InputError, Record, read_bytes, read_text

NonNegative = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
_PROFILE_NAME = re.compile(r"DeviceType\.([A-Za-z0-9]+)_tp([1-9]\d*)_bs([1-9]\d*)\.json", re.ASCII)
_HOST_LINE = re.compile(r"(\S+)\s+slots\s*=\s*([1-9]\d*)", re.ASCII)


class ParameterBytes(Record):
    total_parameters_bytes: NonNegative = 0
    parameters_per_layer_bytes: tuple[NonNegative, ...]
    activation_parameters_bytes: tuple[NonNegative, ...] = ()


class ProfiledModel(Record):
    model_name: str = ""
    num_layers: int = 0
    parameters: ParameterBytes


class ExecutionTime(Record):
    total_time_ms: NonNegative = 0
    forward_backward_time_ms: NonNegative
    between_forward_backward_time_ms: float = 0
    batch_generator_time_ms: NonNegative
    layernorm_grads_all_reduce_time_ms: NonNegative = 0
    embedding_grads_all_reduce_time_ms: NonNegative = 0
    optimizer_time_ms: NonNegative
    layer_compute_total_ms: tuple[NonNegative, ...]


class ExecutionMemory(Record):
    total_memory: NonNegative = 0
    total_memory_mb: NonNegative = 0
    layer_memory_total_mb: tuple[NonNegative, ...]


class Profile(Record):
    """One profile file. Fields with a default are accepted and not used, as in Metis."""

    model: ProfiledModel
    execution_time: ExecutionTime
    execution_memory: ExecutionMemory

    @property
    def outside_layers_ms(self) -> float:
        """Forward and backward of one micro-batch that belongs to no layer: logits and loss."""
        layers_ms = 0.0
        for time in self.execution_time.layer_compute_total_ms:
            layers_ms += time
        return self.execution_time.forward_backward_time_ms - layers_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileKey:
    """What a profile was measured for."""

    device_type: str
    tensor_parallel: int
    batch_size: int

    def __str__(self) -> str:
        return f"DeviceType.{self.device_type}_tp{self.tensor_parallel}_bs{self.batch_size}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileFolder:
    """All profiles of a folder, in the order of their file names."""

    path: Path
    profiles: dict[ProfileKey, Profile]

    @classmethod
    def load(cls, path: Path) -> "ProfileFolder":
        """Return every *.json file of a folder as a profile.

        Raises:
            InputError: the folder has none, or a file's name or content is not a profile's.
        """
        if not path.is_dir():
            raise InputError(
                f"{path}: is no folder; name the folder of DeviceType.TYPE_tpT_bsB.json"
            )
        profiles = {}
        for file in sorted(path.glob("*.json"), key=lambda file: file.name):
            match = _PROFILE_NAME.fullmatch(file.name)
            if not match:
                raise InputError(
                    f"{file}: is no name of a profile, expected DeviceType.TYPE_tpT_bsB.json with a "
                    "TYPE of letters and digits; rename it or move it away"
                )
            device_type, degree, size = match.groups()
            key = ProfileKey(
                device_type=device_type.upper(), tensor_parallel=int(degree), batch_size=int(size)
            )
            if key in profiles:
                raise InputError(f"{file}: is a second profile of {key}; remove one")
            profiles[key] = _decode(file, Profile)
        if not profiles:
            raise InputError(
                f"{path}: holds no *.json file, expected DeviceType.TYPE_tpT_bsB.json; make some "
                "with python -m stagewright.profiler.synthetic gen_synth_data"
            )
        folder = cls(path=path, profiles=profiles)
        folder._check_lengths()
        return folder

    @property
    def first(self) -> tuple[ProfileKey, Profile]:
        """The first file: Metis takes the optimizer, the batch generator and the parameters from it."""
        return next(iter(self.profiles.items()))

    @property
    def num_layers(self) -> int:
        return len(self.first[1].execution_time.layer_compute_total_ms)

    def _check_lengths(self) -> None:
        for key, profile in self.profiles.items():
            lists = {
                "layer_compute_total_ms": profile.execution_time.layer_compute_total_ms,
                "layer_memory_total_mb": profile.execution_memory.layer_memory_total_mb,
                "parameters_per_layer_bytes": profile.model.parameters.parameters_per_layer_bytes,
            }
            for name, values in lists.items():
                if len(values) != self.num_layers or not values:
                    raise InputError(
                        f"{self.path / str(key)}: {name} has {len(values)} layers, expected "
                        f"{self.num_layers or 'at least 1'} as in layer_compute_total_ms of {self.first[0]}; "
                        "profile the same layers everywhere"
                    )


class NodeKind(Record):
    """What the clusterfile says of the nodes of one key."""

    instance_type: str
    """The device type."""
    inter_bandwidth: Positive
    """GB/s between nodes; Metis never uses it."""
    intra_bandwidth: Positive
    """GB/s inside a node; Metis uses it between nodes too."""
    memory: Positive
    """GB of each device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceKind:
    """All devices of one type."""

    name: str
    count: int
    memory_mb: float
    bandwidth_gb_per_s: float
    """The "intra" one."""


def load_devices(hostfile: Path, clusterfile: Path) -> tuple[DeviceKind, ...]:
    """Return the device types of a cluster, by name.

    Raises:
        InputError: a line or an entry is malformed, a node has no entry, or the entries of one device
            type differ.
    """
    kinds = _load_clusterfile(clusterfile)
    found: dict[str, tuple[NodeKind, int]] = {}
    for number, key, slots in _load_hostfile(hostfile):
        if key not in kinds:
            raise InputError(
                f"{hostfile}:{number}: node {key!r} is not in {clusterfile}; add an entry for it"
            )
        kind = kinds[key]
        name = kind.instance_type.upper()
        known, count = found.get(name, (kind, 0))
        if (known.memory, known.intra_bandwidth) != (kind.memory, kind.intra_bandwidth):
            raise InputError(
                f"{clusterfile}: {key!r} gives {name} memory {kind.memory:g} and intra_bandwidth "
                f"{kind.intra_bandwidth:g}, another entry {known.memory:g} and {known.intra_bandwidth:g}; "
                "a device type has one of each"
            )
        found[name] = (known, count + slots)
    if not found:
        raise InputError(f"{hostfile}: names no node, expected lines such as: 0.0.0.1 slots=4")
    return tuple(
        DeviceKind(
            name=name,
            count=count,
            memory_mb=kind.memory * 1024,
            bandwidth_gb_per_s=kind.intra_bandwidth,
        )
        for name, (kind, count) in sorted(found.items())
    )


def _load_hostfile(path: Path) -> list[tuple[int, str, int]]:
    """Line number, key and number of devices of every node; blank lines and # comments are passed over."""
    nodes = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _HOST_LINE.fullmatch(line.strip())
        if not match:
            raise InputError(
                f"{path}:{number}: found {line.strip()!r}, expected a node and its devices: 0.0.0.1 slots=4"
            )
        nodes.append((number, match[1], int(match[2])))
    return nodes


def _load_clusterfile(path: Path) -> dict[str, NodeKind]:
    try:
        kinds = msgspec.json.decode(read_bytes(path), type=dict[str, NodeKind])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: {error}; expected an entry per node as Metis has them") from None
    for key, kind in kinds.items():
        if not re.fullmatch(r"[A-Za-z0-9]+", kind.instance_type, re.ASCII):
            raise InputError(
                f"{path}: instance_type of {key!r} is {kind.instance_type!r}, expected letters and digits, "
                "as in the names of the profiles"
            )
    return kinds


def _decode(path: Path, record: type[Profile]) -> Profile:
    try:
        return msgspec.json.decode(read_bytes(path), type=record)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: {error}; expected a profile as Metis has them") from None
