"""python -m stagewright.models.minkowski.engine: what `make minkowski` runs."""

import sys

from stagewright.models.minkowski.engine.command import main

if __name__ == "__main__":
    sys.exit(main())
