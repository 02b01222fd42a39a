"""stagewright optimize FILE --format NAME: planning what another planner's files describe."""

import importlib
from collections.abc import Sequence

from stagewright.document import InputError

COMMANDS = {
    "dnn-partitioning": "stagewright.optimizer.formats.command",
    "piper": "stagewright.optimizer.formats.command",
    "metis": "stagewright.optimizer.metis.command",
}


def asks_for_other_format(arguments: Sequence[str]) -> bool:
    return any(word == "--format" or word.startswith("--format=") for word in arguments)


def plan_other_format(arguments: Sequence[str]) -> int:
    """Run the command of the format that --format names; return its exit status.

    For metis, FILE is the folder of profiles (its own command calls it --profile_data_path).

    Raises:
        InputError: there is no such format.
    """
    words = [part for word in arguments for part in _split_option(word)]
    place = words.index("--format")
    name = words[place + 1] if place + 1 < len(words) else ""
    if name not in COMMANDS:
        raise InputError(f"--format is {name!r}, expected one of {', '.join(COMMANDS)}")
    if name == "metis":
        rest = words[:place] + words[place + 2 :]
        if rest and not rest[0].startswith("-"):
            rest = ["--profile_data_path", *rest]
        words = rest
    status: int = importlib.import_module(COMMANDS[name]).main(words)
    return status


def _split_option(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--format=") else [word]
