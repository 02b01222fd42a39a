"""python -m stagewright.optimizer.partition brute-force|local-search|hierarchical|exact."""

import sys

from stagewright.cli import run
from stagewright.optimizer.partition.command import main

if __name__ == "__main__":
    sys.exit(run("stagewright.optimizer.partition", main, None))
