"""The fleet: the torchruns of one plan, one on every server, started and ended together."""

import subprocess
import sys
import time
from collections.abc import Sequence

from .lines import ServerLine, command_on
from .node import PATIENCE_S

CHECK_S = 0.1
"""How often ends are looked for."""
PROBE_TIMEOUT_S = 15.0


class Fleet:
    """Running torchruns. Where this process ends in any way, they end too (node.py)."""

    def __init__(
        self, lines: Sequence[ServerLine], ssh: Sequence[str], python: str, *, quiet: bool
    ) -> None:
        """Start every line on its server; quiet sends what they print to the error output."""
        wrapped = (python, "-m", "stagewright.runtime.launching.node")
        self._processes = {
            line.server: subprocess.Popen(
                command_on(line, ssh, (*wrapped, *line.command)),
                stdin=subprocess.PIPE,
                stdout=sys.stderr if quiet else None,
            )
            for line in lines
        }

    def ended(self) -> dict[str, int]:
        """Return the exit status of every server whose torchrun has ended."""
        found = {server: process.poll() for server, process in self._processes.items()}
        return {server: status for server, status in found.items() if status is not None}

    @property
    def is_over(self) -> bool:
        """Whether all have ended well, or one has not."""
        ended = self.ended()
        return len(ended) == len(self._processes) or any(ended.values())

    def stop(self) -> None:
        """End all and wait for them."""
        for process in self._processes.values():
            assert process.stdin is not None
            process.stdin.close()
        deadline = time.monotonic() + PATIENCE_S + 5
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:  # an ssh whose server is gone
                process.kill()
                process.wait()


def run_once(lines: Sequence[ServerLine], ssh: Sequence[str], python: str) -> dict[str, int]:
    """Run every line until all end well or one does not; return the exit status of those that ended."""
    fleet = Fleet(lines, ssh, python, quiet=False)
    try:
        while not fleet.is_over:
            time.sleep(CHECK_S)
        return fleet.ended()
    finally:
        fleet.stop()


def answers(line: ServerLine, ssh: Sequence[str]) -> bool:
    """Return whether a server runs commands; this machine does unless an ssh is given for it."""
    if line.is_here and not ssh:
        return True
    try:
        done = subprocess.run(
            command_on(line, ssh, ("true",)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
