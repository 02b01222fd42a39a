"""Plan the graphs of a server file for devices of several types, under SparsePipe's formula, exactly.

example: python optimizer/optimizer_graph_hierarchical_hybrid.py -f hete_files/test_server.txt \\
           -b 100000000 --activation_compression_ratio 1 -o minkvgg16bn
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .arguments import add_plan_options, report_and_write
from .hybrid import HybridRequest, plan_hybrid


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    Raises:
        InputError: the input is wrong.
    """
    args = _parser().parse_args(argv)
    request = HybridRequest(
        server_path=args.server_config_file,
        bandwidths=tuple(args.network_bandwidths),
        compression=args.activation_compression_ratio,
        straight=args.straight_pipeline,
        memory_bytes=args.memory_size if args.use_memory_constraint else None,
    )
    outcome, planned = plan_hybrid(request)
    report_and_write(outcome, planned, args.output_directory, args.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="optimizer_graph_hierarchical_hybrid.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-f",
        "--server_config_file",
        type=Path,
        required=True,
        help="servers and their devices; its profiles are looked for beside it, then from here",
    )
    parser.add_argument(
        "-b",
        "--network_bandwidths",
        type=float,
        nargs="+",
        default=[1e8],
        help="bytes per second inside servers and between them; one for both (default: 1e8)",
    )
    add_plan_options(parser)
    return parser
