"""Plan a PipeDream graph for inference: the least latency while every stage keeps up with the inputs.

example: python optimizer/inference_optimizer_graph.py -f graph.txt -n 4 -t 0.3 -b 1e9
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .arguments import add_output_options, report_and_write
from .inference import InferenceRequest, plan_inference


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    Raises:
        InputError: the input is wrong.
    """
    args = _parser().parse_args(argv)
    request = InferenceRequest(
        graph_path=args.profile_filename,
        num_devices=args.num_machines,
        period_s=args.time_between_inputs,
        bandwidth_bytes_per_s=args.network_bandwidth,
        devices_per_server=args.num_machines_in_first_level,
        share_input=not args.one_replica_per_input,
        count_transfers=not args.activation_compression,
        straight=args.straight_pipeline,
        memory_bytes=args.memory_size if args.use_memory_constraint else None,
    )
    outcome, planned = plan_inference(request)
    report_and_write(outcome, planned, args.output_directory, args.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="inference_optimizer_graph.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-f", "--profile_filename", type=Path, required=True, help="PipeDream graph.txt"
    )
    parser.add_argument("-n", "--num_machines", type=int, required=True, help="devices")
    parser.add_argument(
        "-t",
        "--time_between_inputs",
        type=float,
        required=True,
        help="seconds; no stage may take longer per input",
    )
    parser.add_argument(
        "-b", "--network_bandwidth", type=float, default=1e9, help="bytes per second (default: 1e9)"
    )
    parser.add_argument(
        "-m", "--num_machines_in_first_level", type=int, help="devices per server (default: all)"
    )
    parser.add_argument(
        "-s",
        "--memory_size",
        type=float,
        default=16e9,
        help="bytes per device; used with --use_memory_constraint (default: 16e9)",
    )
    parser.add_argument(
        "--use_memory_constraint",
        action="store_true",
        help="keep a stage's parameters and outputs within --memory_size",
    )
    parser.add_argument("--straight_pipeline", action="store_true", help="no replicas")
    parser.add_argument(
        "--activation_compression", action="store_true", help="do not count transfers"
    )
    parser.add_argument(
        "--use_fewer_machines", action="store_true", help="always so: devices may be idle"
    )
    parser.add_argument(
        "--one_replica_per_input",
        action="store_true",
        help="count the whole stage as latency, not its replicas' share of it",
    )
    add_output_options(parser)
    return parser
