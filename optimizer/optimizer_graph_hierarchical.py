"""PipeDream's planner as its users call it; --help says how"""

import sys

from stagewright.cli import run
from stagewright.optimizer.pipedream.hierarchical_command import main

if __name__ == "__main__":
    sys.exit(run("optimizer_graph_hierarchical.py", main, None))
