"""Synthetic planning problems of any size: random layers measured on device types of unequal speed.

example: python -m stagewright.optimizer.synthetic -o big --layers 200 --devices 1024 --types 4

Layer times are uniform in 5 to 15 ms on the fastest type and differ by up to 10 % per type; the types have
relative speeds 1, 0.55, 0.3, 0.18 and 80, 40, 32, 16 GiB. Light layers keep 25 MB per micro-batch and have
200 MB of parameters, heavy ones 350 MB and 800 MB. Nothing is measured: every file says that it is synthetic.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stagewright.cluster import Cluster, DeviceGroup, DeviceType, Link, Links, Server
from stagewright.document import InputError
from stagewright.graph import (
    InputOperation,
    LayerCost,
    LayerGraph,
    LayerNode,
    ModelIdentity,
    ModuleOperation,
    WholeStep,
)
from stagewright.value import LayerRef, PerSample, TensorSpec

from .costs.cost import FloatArray
from .load import Inputs

SPEEDS = (1.0, 0.55, 0.3, 0.18)
MEMORY_GIB = (80, 40, 32, 16)
PRICES = (4.0, 2.5, 1.5, 0.8)
"""Per hour, of nobody's list: the faster, the dearer for what it does."""
INSIDE = Link(bandwidth_bytes_per_s=25e9, latency_ms=0.005)
BETWEEN = Link(bandwidth_bytes_per_s=12.5e9, latency_ms=0.02)
OUTPUT_WIDTH = 2_000_000
"""Numbers of 4 bytes that a layer sends on: 8 MB."""


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """A problem to make; the same one gives the same files everywhere."""

    num_layers: int = 200
    num_devices: int = 1024
    """In equal parts of each type; a rest is left out."""
    num_types: int = 4
    is_heavy: bool = False
    devices_per_server: int = 0
    """0: all in one server."""
    seed: int = 0

    @property
    def types(self) -> tuple[str, ...]:
        return ("a", "b", "c", "d")[: self.num_types]

    @property
    def price_per_hour(self) -> float:
        """Of all devices."""
        return sum(PRICES[: self.num_types]) * (self.num_devices // self.num_types)


def make_inputs(synthetic: Synthetic, folder: Path = Path(".")) -> Inputs:
    """Return a synthetic problem; `save_inputs` writes it to a folder.

    Raises:
        InputError: a number is out of range.
    """
    if not (1 <= synthetic.num_types <= len(SPEEDS) and synthetic.num_layers >= 1):
        raise InputError(
            f"synthetic problem: {synthetic.num_layers} layers on {synthetic.num_types} types, expected at "
            f"least 1 layer and 1 to {len(SPEEDS)} types"
        )
    each = synthetic.num_devices // synthetic.num_types
    if each < 1:
        raise InputError(
            f"synthetic problem: {synthetic.num_devices} devices of {synthetic.num_types} types, expected at "
            "least one of each"
        )
    rng = np.random.default_rng(synthetic.seed)
    base_ms = rng.uniform(5, 15, synthetic.num_layers)
    graphs = {
        name: _graph(synthetic, name, base_ms / speed * rng.uniform(0.9, 1.1, len(base_ms)))
        for name, speed in zip(synthetic.types, SPEEDS, strict=False)
    }
    return Inputs(
        cluster=_cluster(synthetic, each),
        cluster_path=folder / "cluster.json",
        graphs=graphs,
        graph_paths={name: folder / f"{name}.json" for name in graphs},
    )


def save_inputs(inputs: Inputs) -> None:
    """Write the cluster and the graphs to their paths."""
    inputs.cluster.save(inputs.cluster_path)
    for name, graph in inputs.graphs.items():
        graph.save(inputs.graph_paths[name])


def _cluster(synthetic: Synthetic, each: int) -> Cluster:
    size = synthetic.devices_per_server or each
    servers = []
    for name in synthetic.types:
        counts = [size] * (each // size) + ([each % size] if each % size else [])
        groups = [DeviceGroup(type=name, count=count) for count in counts]
        servers += [Server(name=f"{name}{i}", devices=(g,)) for i, g in enumerate(groups)]
    if not synthetic.devices_per_server:
        devices = tuple(group for server in servers for group in server.devices)
        servers = [Server(name="all", devices=devices)]
    return Cluster(
        device_types={
            name: DeviceType(memory_bytes=gib * 2**30, profile=f"{name}.json", price_per_hour=price)
            for name, gib, price in zip(synthetic.types, MEMORY_GIB, PRICES, strict=False)
        },
        servers=tuple(servers),
        links=Links(inside_server=INSIDE, between_servers=BETWEEN if len(servers) > 1 else None),
    )


def _graph(synthetic: Synthetic, device_type: str, times_ms: FloatArray) -> LayerGraph:
    def spec(requires_grad: bool) -> TensorSpec:
        shape = (PerSample(per_sample=1), OUTPUT_WIDTH)
        return TensorSpec(shape=shape, dtype="float32", requires_grad=requires_grad)

    def cost(time_ms: float, saved_bytes: int) -> LayerCost:
        return LayerCost(
            batch_size=1,
            forward_ms=time_ms / 3,
            backward_ms=time_ms * 2 / 3,
            output_bytes=4 * OUTPUT_WIDTH,
            saved_bytes=saved_bytes,
        )

    layers = [
        LayerNode(
            name="input",
            operation=InputOperation(key=0),
            arguments=(),
            output=spec(False),
            parameter_bytes=0,
            costs=(cost(0.0, 0),),
        )
    ]
    for index, time_ms in enumerate(times_ms):
        layers.append(
            LayerNode(
                name=f"layer{index}",
                operation=ModuleOperation(path=f"layer{index}", type="Synthetic", constructor=None),
                arguments=(LayerRef(name=layers[-1].name),),
                output=spec(True),
                parameter_bytes=800_000_000 if synthetic.is_heavy else 200_000_000,
                costs=(cost(float(time_ms), 350_000_000 if synthetic.is_heavy else 25_000_000),),
            )
        )
    whole_ms = float(sum(times_ms))
    return LayerGraph(
        model=ModelIdentity(task="synthetic.py", factory="build", structure_sha256="0" * 64),
        device_type=device_type,
        device="synthetic: no device was measured",
        dtype="float32",
        torch_version="none",
        batch_sizes=(1,),
        layers=tuple(layers),
        output=LayerRef(name=layers[-1].name),
        whole=(
            WholeStep(
                batch_size=1,
                forward_ms=whole_ms / 3,
                backward_ms=whole_ms * 2 / 3,
                update_ms=whole_ms / 50,
                update_optimizer="Adam",
            ),
        ),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    Raises:
        InputError: a number is out of range, or the folder cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m stagewright.optimizer.synthetic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--devices", type=int, default=1024)
    parser.add_argument("--types", type=int, default=4)
    parser.add_argument("--heavy", action="store_true", help="memory is tight")
    parser.add_argument("--devices-per-server", type=int, default=0, help="0: one server")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    synthetic = Synthetic(
        num_layers=args.layers,
        num_devices=args.devices,
        num_types=args.types,
        is_heavy=args.heavy,
        devices_per_server=args.devices_per_server,
        seed=args.seed,
    )
    save_inputs(make_inputs(synthetic, args.output))
    print(f"synthetic cluster and layer graphs written to {args.output}")
    return 0


if __name__ == "__main__":
    from stagewright.cli import run

    raise SystemExit(run("python -m stagewright.optimizer.synthetic", main, None))
