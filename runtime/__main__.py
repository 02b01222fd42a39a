"""python -m stagewright.runtime is stagewright train."""

import sys

from stagewright.cli import run
from stagewright.runtime.command import main

if __name__ == "__main__":
    sys.exit(run("stagewright train", main, None))
