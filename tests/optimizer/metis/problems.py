"""Problems for the tests: the rows that step counts were published for, and small random ones."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from stagewright.optimizer.metis.formats import DeviceKind, Profile, ProfileFolder, ProfileKey
from stagewright.optimizer.metis.plan import MetisPlan
from stagewright.optimizer.metis.problem import Problem, Settings, powers_of_two
from stagewright.profiler.synthetic import synthetic_profiles

GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "data" / "metis"
ROWS = {1: (10, 16), 2: (20, 32), 3: (20, 64), 4: (40, 128)}
"""Layers and devices of each of the two types."""


def golden(name: str) -> Any:
    """Return a file of golden values; skip the test where the folder is missing."""
    path = GOLDEN / name
    if not path.is_file():
        pytest.skip(f"golden values are not there: {path}")
    return json.loads(path.read_bytes())


def row_problem(row: int) -> Problem:
    """Return a published row's problem, without files."""
    num_layers, count = ROWS[row]
    settings = Settings(
        num_layers=num_layers,
        global_batch_size=128,
        hidden_size=4096,
        sequence_length=1024,
        vocab_size=51200,
        max_tensor_parallel=128,
        max_batch_size=128,
    )
    devices = (
        DeviceKind(name="A100", count=count, memory_mb=80 * 1024, bandwidth_gb_per_s=46),
        DeviceKind(name="V100", count=count, memory_mb=16 * 1024, bandwidth_gb_per_s=50),
    )
    return Problem(settings=settings, devices=devices, folder=_synthetic_folder(num_layers))


def plan_of(content: dict[str, Any]) -> MetisPlan:
    """Return the plan of a golden cost."""
    return MetisPlan(
        node_sequence=tuple(content["ns"]),
        device_groups=tuple(content["dg"]),
        strategies=tuple((dp, tp) for dp, tp in content["st"]),
        batches=content["B"],
        partition=tuple(content["part"]),
        stages_charged=content["num_stage"],
    )


def random_problem(
    seed: int, counts: Sequence[int], num_layers: int, global_batch_size: int
) -> Problem:
    """Return a problem whose layers, devices and memory differ at random; memory is scarce in some."""
    rng = np.random.default_rng(seed)
    names = ["A", "B", "C"][: len(counts)]
    degrees, sizes = powers_of_two(sum(counts)), powers_of_two(global_batch_size)
    profiles = {}
    for name in names:
        for degree in degrees:
            for size in sizes:
                key = ProfileKey(device_type=name, tensor_parallel=degree, batch_size=size)
                profiles[key] = _random_profile(rng, num_layers, size / degree)
    scarcity = rng.choice([0.1, 0.2, 0.5, 100.0])
    settings = Settings(
        num_layers=num_layers,
        global_batch_size=global_batch_size,
        hidden_size=int(rng.integers(1, 40)),
        sequence_length=1024,
        vocab_size=int(rng.integers(1, 400)),
        max_tensor_parallel=int(rng.choice(degrees)),
        max_batch_size=global_batch_size,
    )
    devices = tuple(
        DeviceKind(
            name=name,
            count=count,
            memory_mb=scarcity * rng.uniform(5, 20),
            bandwidth_gb_per_s=rng.uniform(0.01, 0.2),
        )
        for name, count in zip(names, counts, strict=True)
    )
    return Problem(
        settings=settings,
        devices=devices,
        folder=ProfileFolder(path=Path("profile"), profiles=profiles),
    )


@cache
def _synthetic_folder(num_layers: int) -> ProfileFolder:
    profiles = {}
    for name, content in sorted(synthetic_profiles(num_layers, 128).items()):
        device_type, degree, size = name.removesuffix(".json").split(".")[1].split("_")
        key = ProfileKey(
            device_type=device_type, tensor_parallel=int(degree[2:]), batch_size=int(size[2:])
        )
        profiles[key] = msgspec.convert(content, Profile)
    return ProfileFolder(path=Path("profile"), profiles=profiles)


def _random_profile(rng: np.random.Generator, num_layers: int, work: float) -> Profile:
    layers = (rng.uniform(0.2, 3, num_layers) * work).tolist()
    return msgspec.convert(
        {
            "model": {
                "parameters": {
                    "parameters_per_layer_bytes": rng.integers(1, 60000, num_layers).tolist()
                }
            },
            "execution_time": {
                "forward_backward_time_ms": sum(layers) + rng.uniform(0.1, 2) * work,
                "batch_generator_time_ms": rng.uniform(0, 0.2),
                "optimizer_time_ms": rng.uniform(0, 2),
                "layer_compute_total_ms": layers,
            },
            "execution_memory": {"layer_memory_total_mb": rng.uniform(0.2, 2, num_layers).tolist()},
        },
        Profile,
    )
