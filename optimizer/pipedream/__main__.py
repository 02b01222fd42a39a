"""python -m stagewright.optimizer.pipedream GRAPH.json -o graph.txt"""

import sys

from stagewright.cli import run
from stagewright.optimizer.pipedream.convert_command import main

if __name__ == "__main__":
    sys.exit(run("stagewright.optimizer.pipedream", main, None))
