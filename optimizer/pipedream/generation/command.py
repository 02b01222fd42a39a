"""Write the stages of a cut text graph as modules for PyTorch 2, as PipeDream's generator does.

example: python optimizer/convert_graph_to_model.py -f gpus=4.txt -n VGG16Partitioned -a vgg16 \\
           -o models/vgg16 --stage_to_num_ranks 0:3,1:1
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from stagewright.document import InputError

from .templates import CONF_KEYS, INIT_KEYS, MODEL_KEYS
from .write import Request, write_model


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    Raises:
        InputError: the input is wrong.
    """
    arguments = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(arguments)
    request = Request(
        graph_path=args.input_filename,
        model_name=args.model_name,
        arch=args.arch,
        folder=args.output_directory,
        replicas=_replicas(args.stage_to_num_ranks_map, arguments),
        model_template=args.model_template_filename,
        init_template=args.init_template_filename,
        conf_template=args.conf_template_filename,
    )
    written = write_model(request)
    if args.json:
        print(json.dumps({"folder": str(request.folder)} | asdict(written)))
        return 0
    for name, num_layers in zip(written.stages, written.num_layers, strict=True):
        print(f"Done generating {name}... ({num_layers} layers)")
    print(f"Done with sub-graph fusion: {', '.join(written.others)} in {request.folder}")
    return 0


def _replicas(text: str | None, typed: Sequence[str]) -> tuple[int, ...] | None:
    """Return the ranks of each stage from "0:3,1:1"; typed are all words, for the option's name in an error.

    Raises:
        InputError: the text is no such map, or leaves a stage out.
    """
    if text is None:
        return None
    pairs = [re.fullmatch(r"(\d{1,6}):(\d{1,6})", word, re.ASCII) for word in text.split(",")]
    found = {int(pair[1]): int(pair[2]) for pair in pairs if pair is not None}
    if None in pairs or sorted(found) != list(range(len(pairs))) or min(found.values()) < 1:
        option = next(word for word in typed if word.startswith("--stage")).partition("=")[0]
        raise InputError(
            f"{option} is {text!r}, expected STAGE:RANKS for each stage from 0, as in 0:3,1:1"
        )
    return tuple(found[stage] for stage in range(len(found)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convert_graph_to_model.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("-f", "--input_filename", type=Path, required=True, help="text graph with stage_id")
    add("-n", "--model_name", required=True, help="class of the whole model")
    add(
        "-a",
        "--arch",
        required=True,
        help="its file's name; weights of vgg16, resnet50 and minkunet are set anew",
    )
    add("-o", "--output_directory", type=Path, required=True, help="folder to write")
    add(
        "--stage_to_num_ranks_map",
        "--stage_to_num_ranks",
        metavar="0:3,1:1",
        help="ranks of each stage, for dp_conf.json and hybrid_conf.json",
    )
    for option, keys in (("model", MODEL_KEYS), ("init", INIT_KEYS), ("conf", CONF_KEYS)):
        words = ", ".join(f"%%({key})s" for key in keys)
        add(f"--{option}_template_filename", type=Path, help=f"a text with {words}")
    add("--json", action="store_true", help="print one JSON object")
    return parser
