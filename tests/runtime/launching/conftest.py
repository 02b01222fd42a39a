"""Two servers that are this machine, a plan on both, and a stand-in for ssh that can cut a server off."""

import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CLUSTER = """\
format = "stagewright.cluster"
version = 2

[device_types.cpu]
memory_bytes = 1_000_000_000
profile = "{profile}"

[[servers]]
name = "big"
devices = [{{ type = "cpu", count = 2 }}]

[[servers]]
name = "small"
devices = [{{ type = "cpu", count = 1 }}]

[links]
inside_server = {{ bandwidth_bytes_per_s = 1.0e12, latency_ms = 0.0 }}
between_servers = {{ bandwidth_bytes_per_s = 1.0e12, latency_ms = 0.0 }}
"""
HOSTS = {"big": "127.0.0.1", "small": "127.0.0.2"}


@dataclass(frozen=True)
class Servers:
    """A cluster file of two servers, stage modules for both, and how to reach them."""

    folder: Path
    package: Any

    @property
    def cluster(self) -> Path:
        return self.folder / "cluster.toml"

    @property
    def ssh(self) -> str:
        """A command that runs a command line on a host unless the host is cut off."""
        return f"sh {shlex.quote(str(self.folder / 'ssh.sh'))}"

    def down(self, server: str) -> Path:
        """The file that cuts a server off while it is there."""
        return self.folder / f"down-{HOSTS[server]}"

    def command(self, *options: str, train: tuple[str, ...] = ()) -> list[str]:
        """Return a launch on a free port."""
        hosts = [word for name, host in HOSTS.items() for word in ("--host", f"{name}={host}")]
        launch = [sys.executable, "-m", "stagewright.cli", "launch", str(self.cluster)]
        places = [str(self.package.directory), *hosts, "--port", str(free_port())]
        return [*launch, *places, *options, "--", "--task", self.package.task, *train]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return min(port, 64000)


@pytest.fixture
def servers(make_package: Callable[..., Any], tmp_path: Path) -> Servers:
    package = make_package("mlp", [2, 1], 6, "1f1b", servers=("big", "big", "small"))
    folder = tmp_path / "servers"
    folder.mkdir()
    profile = os.path.relpath(package.directory.parent / "graph.json", folder)
    (folder / "cluster.toml").write_text(CLUSTER.format(profile=profile))
    script = f'host=$1; shift; [ -e "{folder}/down-$host" ] && exit 255; exec sh -c "$*"\n'
    (folder / "ssh.sh").write_text(script)
    return Servers(folder, package)


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Yield id and command line of every process that one has started, itself or through others."""
    parents: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(status.parent.name))
    waiting = [pid]
    while waiting:
        for child in sorted(parents.get(waiting.pop(), [])):
            waiting.append(child)
            try:
                words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            yield child, b" ".join(words).decode(errors="replace")


def kill(pids: list[int], number: signal.Signals = signal.SIGKILL) -> None:
    """Send processes that a test has started a signal; those that have ended are left out."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait for something that other processes do."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.05)


@pytest.fixture
def processes() -> Any:
    """The functions above, for tests, which cannot import this file."""

    class Functions:
        of = staticmethod(descendants)
        end = staticmethod(kill)
        wait = staticmethod(wait_until)

    return Functions
