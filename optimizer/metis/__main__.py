"""Run the planner that is compatible with Metis."""

import sys

from stagewright.cli import run
from stagewright.optimizer.metis.command import main

if __name__ == "__main__":
    sys.exit(run("metis", main, None))
