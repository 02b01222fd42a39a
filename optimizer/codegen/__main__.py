"""python -m stagewright.optimizer.codegen is stagewright generate."""

import sys

from stagewright.cli import run
from stagewright.optimizer.codegen.command import main

if __name__ == "__main__":
    sys.exit(run("stagewright generate", main, None))
