"""PipeDream's code generator as its users call it; --help says how"""

import sys

from stagewright.cli import run
from stagewright.optimizer.pipedream.generation.command import main

if __name__ == "__main__":
    sys.exit(run("convert_graph_to_model.py", main, None))
