"""Make synthetic profiles and hostfiles in Metis's formats, for planning without any GPU.

The profiles are extrapolated from nine measured ones (a GPT of 10 layers on A100 GPUs) in the way, and with
the very values, of the generator with which the step counts of docs/benchmarks.md were published: compute
scales perfectly beyond tensor parallelism 4 and batch size 4, a V100 takes 3.5 times as long as an A100,
and memory depends on the layer alone. The values are emulated, not measured; use them to compare planners.

example: python -m stagewright.profiler.synthetic gen_synth_data 10 128 --profile_dir profile
         python -m stagewright.profiler.synthetic gen_hostfile 32 --hostfile_path hostfile
"""

import argparse
import functools
import json
import operator
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stagewright.cli import run
from stagewright.document import InputError, write_atomically

V100_SLOWDOWN = 3.5
BASE_LAYERS = 10
BASE_DEGREES = (1, 2, 4)
DEVICES_PER_NODE = 4
V100_KEY, A100_KEY = "0.0.0.1", "0.0.0.4"
"""What the hostfile calls the nodes of a type; the clusterfile says what they are."""

_PARAMETER_BYTES = (393216000, 202383360, 393220096)
_MEMORY_MB = (7820, 4146, 12132)
"""Of the first, a middle and the last layer."""
_MEASURED_MS = {
    (1, 1): (292.7964687347412, 0.9145021438598633, 0.020313262939453125, 0.04248619079589844,
             39.308977127075195, 0.2892017364501953, 29.507994651794434, 0.4100799560546875),
    (1, 2): (580.2594184875488, 1.1479616165161133, 0.022220611572265625, 0.048804283142089844,
             39.59686756134033, 0.6282329559326172, 58.86340141296387, 0.6556510925292969),
    (1, 4): (1143.9790725708008, 1.0437250137329102, 0.02143383026123047, 0.04825592041015625,
             39.47432041168213, 1.0962486267089844, 116.56570434570312, 1.066446304321289),
    (2, 1): (167.60022640228271, 0.9002208709716797, 0.5506515502929688, 0.03962516784667969,
             20.2700138092041, 1.1625289916992188, 16.83783531188965, 0.3528594970703125),
    (2, 2): (313.36352825164795, 1.025700569152832, 0.5963563919067383, 0.043272972106933594,
             20.301532745361328, 1.7201900482177734, 32.2415828704834, 0.469207763671875),
    (2, 4): (611.6964817047119, 0.9355545043945312, 0.6118535995483398, 0.038433074951171875,
             20.454931259155273, 2.507448196411133, 63.25173377990723, 0.6699562072753906),
    (4, 1): (99.9199390411377, 0.9341955184936523, 0.4595518112182617, 0.037360191345214844,
             10.814285278320312, 1.0263919830322266, 10.216951370239258, 0.3376007080078125),
    (4, 2): (179.92208003997803, 0.9298801422119141, 0.5153894424438477, 0.03802776336669922,
             10.793113708496094, 1.8298625946044922, 19.173383712768555, 0.4038810729980469),
    (4, 4): (335.2949619293213, 0.9746074676513672, 0.6551504135131836, 0.04265308380126953,
             10.96353530883789, 2.949237823486328, 35.823822021484375, 0.67901611328125),
}  # fmt: skip
"""By tensor parallelism and batch size: forward and backward, batch generator, layer norm all-reduce,
embedding all-reduce, optimizer; then the first, a middle and the last layer. Source: SamsungLabs' samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticTimes:
    """The times of one profile; every field is in ms."""

    forward_backward: float
    between: float
    """Forward and backward outside the layers: logits, loss."""
    batch_generator: float
    layernorm: float
    embedding: float
    optimizer: float
    layers: tuple[float, ...]
    total: float = 0.0

    def scaled(self, factor: float) -> "SyntheticTimes":
        """Return the times with the compute, and nothing else, multiplied; the total is added anew."""
        changed = replace(
            self,
            forward_backward=self.forward_backward * factor,
            between=self.between * factor,
            layers=tuple(time * factor for time in self.layers),
        )
        parts = (changed.forward_backward, changed.optimizer, changed.batch_generator)
        return replace(changed, total=_sum((*parts, changed.layernorm, changed.embedding)))

    def slowed(self, factor: float) -> "SyntheticTimes":
        """Return the times of a device that is slower at everything."""
        return SyntheticTimes(
            forward_backward=self.forward_backward * factor,
            between=self.between * factor,
            batch_generator=self.batch_generator * factor,
            layernorm=self.layernorm * factor,
            embedding=self.embedding * factor,
            optimizer=self.optimizer * factor,
            layers=tuple(time * factor for time in self.layers),
            total=self.total * factor,
        )


def base_times(tensor_parallel: int, batch_size: int, num_layers: int) -> SyntheticTimes:
    """Return a measured profile stretched from 10 layers to num_layers."""
    measured = _MEASURED_MS[tensor_parallel, batch_size]
    whole, batch_generator, layernorm, embedding, optimizer, first, middle, last = measured
    between = whole - _sum((first, *[middle] * (BASE_LAYERS - 2), last))
    layers = (first, *[middle] * (num_layers - 2), last)
    forward_backward = between + _sum(layers)
    layernorm = layernorm / BASE_LAYERS * num_layers
    optimizer = optimizer / BASE_LAYERS * num_layers
    return SyntheticTimes(
        forward_backward=forward_backward,
        between=between,
        batch_generator=batch_generator,
        layernorm=layernorm,
        embedding=embedding,
        optimizer=optimizer,
        layers=layers,
        total=_sum((forward_backward, batch_generator, layernorm, embedding, optimizer)),
    )


def synthetic_profiles(num_layers: int, largest: int) -> dict[str, dict[str, Any]]:
    """Return the content of every profile by its file name, in the order in which they are made.

    Args:
        num_layers: of the model, the embedding and the output layer included; at least 2.
        largest: batch size and, as in the original, tensor parallelism go in powers of two up to this one.

    Raises:
        InputError: an argument is out of its range.

    Source: the generator of Metis's fork "Improved Intra-Operator Parallelism"; equal values, sums added
    in the same order.
    """
    if num_layers < 2:
        raise InputError(f"LAYERS is {num_layers}, expected 2 or more: a first and a last layer")
    if largest < BASE_DEGREES[-1] or largest & (largest - 1):
        raise InputError(f"MAX is {largest}, expected a power of two from 4")
    times = {
        (degree, size): base_times(degree, size, num_layers)
        for degree in BASE_DEGREES
        for size in BASE_DEGREES
    }
    for degree in BASE_DEGREES:
        for size in _doublings(BASE_DEGREES[-1], largest):
            times[degree, 2 * size] = times[degree, size].scaled(2)
    for size in (1, 2, *_doublings(BASE_DEGREES[-1], 2 * largest)):
        for degree in _doublings(BASE_DEGREES[-1], largest):
            times[2 * degree, size] = times[degree, size].scaled(1 / 2)
    profiles = {_name("A100", *key): _content(found) for key, found in times.items()}
    for key, found in times.items():
        profiles[_name("V100", *key)] = _content(found.slowed(V100_SLOWDOWN))
    return profiles


def write_profiles(num_layers: int, largest: int, folder: Path) -> list[Path]:
    """Write the profiles and return their paths; profiles that the folder already holds are removed.

    The original empties the folder of every file; here other files stay.

    Raises:
        InputError: an argument is out of its range, or the folder cannot be written.
    """
    profiles = synthetic_profiles(num_layers, largest)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir()):
            if re.fullmatch(r"DeviceType\.\w+_tp\d+_bs\d+\.json", path.name):
                path.unlink()
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be used as the folder of profiles: {error.strerror}"
        ) from None
    for name, content in profiles.items():
        write_atomically(folder / name, json.dumps(content, indent=2).encode() + b"\n")
    return [folder / name for name in profiles]


def hostfile_text(num_devices_per_type: int) -> str:
    """Return a hostfile of V100 nodes, then as many A100 nodes, with 4 devices each.

    Raises:
        InputError: there are too few devices for a node of each type.
    """
    num_nodes = num_devices_per_type // DEVICES_PER_NODE
    if num_nodes < 1:
        raise InputError(
            f"N is {num_devices_per_type}, expected {DEVICES_PER_NODE} or more devices of each type"
        )
    keys = [V100_KEY] * num_nodes + [A100_KEY] * num_nodes
    return "".join(f"{key} slots={DEVICES_PER_NODE}\n" for key in keys)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    args = _parser().parse_args(argv)
    if args.command == "gen_synth_data":
        written = write_profiles(args.layers, args.largest, args.profile_dir)
        what = f"{len(written)} profiles (emulated) into {args.profile_dir}"
    else:
        text = hostfile_text(args.num_devices)
        write_atomically(args.hostfile_path, text.encode())
        written = [args.hostfile_path]
        what = f"{args.hostfile_path}: {text.count('slots')} nodes of {DEVICES_PER_NODE} devices"
    files = [str(path) for path in written]
    print(json.dumps({"files": files, "provenance": "emulated"}) if args.json else f"wrote {what}")
    return 0


def _content(times: SyntheticTimes) -> dict[str, Any]:
    """The profile as Metis's file holds it."""
    num_layers = len(times.layers)
    parameters = _stretched(_PARAMETER_BYTES, num_layers)
    memory = _stretched(_MEMORY_MB, num_layers)
    return {
        "model": {
            "model_name": "GPT3",
            "num_layers": num_layers,
            "parameters": {
                "total_parameters_bytes": sum(parameters),
                "parameters_per_layer_bytes": parameters,
            },
        },
        "execution_time": {
            "total_time_ms": times.total,
            "forward_backward_time_ms": times.forward_backward,
            "between_forward_backward_time_ms": times.between,
            "batch_generator_time_ms": times.batch_generator,
            "layernorm_grads_all_reduce_time_ms": times.layernorm,
            "embedding_grads_all_reduce_time_ms": times.embedding,
            "optimizer_time_ms": times.optimizer,
            "layer_compute_total_ms": list(times.layers),
        },
        "execution_memory": {"total_memory": sum(memory), "layer_memory_total_mb": memory},
    }


def _stretched(values: tuple[int, int, int], num_layers: int) -> list[int]:
    first, middle, last = values
    return [first, *[middle] * (num_layers - 2), last]


def _doublings(first: int, end: int) -> Iterator[int]:
    """first, 2 first, 4 first, ... below end."""
    value = first
    while value < end:
        yield value
        value *= 2


def _name(device_type: str, tensor_parallel: int, batch_size: int) -> str:
    return f"DeviceType.{device_type}_tp{tensor_parallel}_bs{batch_size}.json"


def _sum(terms: Sequence[float]) -> float:
    """Add from left to right: newer Pythons' sum() compensates for rounding, which gives other values."""
    return functools.reduce(operator.add, terms)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stagewright.profiler.synthetic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("gen_synth_data", help="profiles of an A100 and a V100")
    data.add_argument("layers", type=int, metavar="LAYERS", help="layers of the model")
    data.add_argument("largest", type=int, metavar="MAX", help="largest batch size and tp degree")
    data.add_argument("--profile_dir", "--profile-dir", type=Path, default=Path("./profile"))
    hosts = commands.add_parser("gen_hostfile", help="as many nodes of V100 as of A100")
    hosts.add_argument("num_devices", type=int, metavar="N", help="devices of each type")
    hosts.add_argument("--hostfile_path", "--hostfile-path", type=Path, default=Path("./hostfile"))
    for command in (data, hosts):
        command.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


if __name__ == "__main__":
    sys.exit(run("synthetic", main, None))
