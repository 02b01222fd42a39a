"""python -m stagewright.optimizer.formats FILE --format dnn-partitioning|piper."""

import sys

from stagewright.cli import run
from stagewright.optimizer.formats.command import main

if __name__ == "__main__":
    sys.exit(run("stagewright optimize", main, None))
