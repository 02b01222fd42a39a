"""PipeDream's planner for inference as its users call it; --help says how"""

import sys

from stagewright.cli import run
from stagewright.optimizer.pipedream.inference_command import main

if __name__ == "__main__":
    sys.exit(run("inference_optimizer_graph.py", main, None))
