"""python -m stagewright TOOL ...: the same as the stagewright command."""

import sys

from stagewright.cli import main

if __name__ == "__main__":
    sys.exit(main())
