"""Write a layer graph as PipeDream's graph.txt; its first line, a comment, says how it was measured.

example: python -m stagewright.optimizer.pipedream vgg16_slow.json -b 2 -o hete_files/vgg16_slow.txt
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from stagewright.document import write_atomically
from stagewright.graph import LayerGraph
from stagewright.pipedream_conversion import from_layer_graph


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    Raises:
        InputError: the file is no layer graph, or the micro-batch size was not measured.
    """
    parser = argparse.ArgumentParser(
        prog="python -m stagewright.optimizer.pipedream",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("graph", type=Path, help="layer graph (JSON) of stagewright profile")
    parser.add_argument(
        "-b", "--batch-size", type=int, help="default: the largest that was measured"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="graph.txt to write")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    graph = LayerGraph.load(args.graph)
    batch_size = args.batch_size or max(graph.batch_sizes)
    text = str(from_layer_graph(graph, batch_size))
    comment = comment_of(graph, batch_size)
    write_atomically(args.output, f"# {comment}\n{text}".encode())
    report = {"written": str(args.output), "batch_size": batch_size, "comment": comment}
    print(json.dumps(report) if args.json else f"{args.output}: {comment}")
    return 0


def comment_of(graph: LayerGraph, batch_size: int) -> str:
    """Return how a graph was measured, in one line."""
    device = f"{graph.device_type} ({graph.device})"
    if graph.emulation is not None:
        device += f", EMULATED: times measured and multiplied by {graph.emulation.slowdown:g}"
    return (
        f"{graph.model.task}, micro-batch of {batch_size}, {graph.dtype}, torch {graph.torch_version}, "
        f"measured on {device}"
    )
