"""python -m stagewright.profiler is stagewright profile."""

import sys

from stagewright.cli import run
from stagewright.profiler.command import main

if __name__ == "__main__":
    sys.exit(run("stagewright profile", main, None))
