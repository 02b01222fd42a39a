"""Plan a PipeDream graph for equal devices behind nested levels of links, as PipeDream's planner does.

example: python optimizer/optimizer_graph_hierarchical.py -f graph.txt -n 8 2 -b 25e9 3.125e9 \\
           --activation_compression_ratio 1 -o plans
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stagewright.document import InputError

from .arguments import add_plan_options, report_and_write
from .hierarchical import SOLVERS, HierarchicalRequest, plan_hierarchical
from .problem import PIPEDREAM_FACTOR, SPARSEPIPE_FACTOR, Level

REDUCE_FACTORS = {"pipedream": PIPEDREAM_FACTOR, "sparsepipe": SPARSEPIPE_FACTOR}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    Raises:
        InputError: the input is wrong.
    """
    args = _parser().parse_args(argv)
    if len(args.all_num_machines) != len(args.network_bandwidths):
        raise InputError(
            f"-n has {len(args.all_num_machines)} numbers and -b {len(args.network_bandwidths)}, expected as "
            "many; give one bandwidth for each level, innermost first"
        )
    levels = zip(args.all_num_machines, args.network_bandwidths, strict=True)
    request = HierarchicalRequest(
        graph_path=args.profile_filename,
        levels=tuple(Level(number, bandwidth) for number, bandwidth in levels),
        solver=args.solver,
        compression=args.activation_compression_ratio,
        straight=args.straight_pipeline,
        memory_bytes=args.memory_size if args.use_memory_constraint else None,
        fewer_devices=args.use_fewer_machines,
        reduce_factor=REDUCE_FACTORS[args.cost_model],
    )
    outcome, planned = plan_hierarchical(request)
    report_and_write(outcome, planned, args.output_directory, args.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="optimizer_graph_hierarchical.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-f", "--profile_filename", type=Path, required=True, help="PipeDream graph.txt"
    )
    parser.add_argument(
        "-n",
        "--all_num_machines",
        type=int,
        nargs="+",
        required=True,
        help="devices per server, servers, ...: members of each level, innermost first",
    )
    parser.add_argument(
        "-b",
        "--network_bandwidths",
        type=float,
        nargs="+",
        default=[1e9],
        help="bytes per second on each level, innermost first (default: 1e9)",
    )
    add_plan_options(parser)
    parser.add_argument("--solver", choices=SOLVERS, default="pipedream")
    parser.add_argument(
        "--cost-model",
        choices=REDUCE_FACTORS,
        default="pipedream",
        help="pipedream: c = 4; sparsepipe: c = 2, as in SparsePipe's copy of this planner",
    )
    return parser
