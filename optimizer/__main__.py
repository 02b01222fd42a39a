"""python -m stagewright.optimizer is stagewright optimize."""

import sys

from stagewright.cli import run
from stagewright.optimizer.command import main

if __name__ == "__main__":
    sys.exit(run("stagewright optimize", main, None))
