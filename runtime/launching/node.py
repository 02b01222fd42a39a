"""One server's end of a launch: runs a command and ends it when the launcher is gone. Standard library only.

Started as: python -m stagewright.runtime.launching.node COMMAND ... The launcher holds the other end of the
standard input, so it closes when the launcher ends in any way, also over ssh.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

PATIENCE_S = 45.0
"""How long a command may take to end; torchrun gives its ranks 30 seconds."""


def main(argv: Sequence[str]) -> int:
    """Run a command; return its exit status, 128 + the signal's number if one ended it."""
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)

    def end(*_: object) -> None:
        process.terminate()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The terminal's goes to the command too.

    def watch() -> None:
        while os.read(0, 4096):
            pass
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()

    threading.Thread(target=watch, daemon=True).start()
    status = process.wait()
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
