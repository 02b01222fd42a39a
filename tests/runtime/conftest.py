"""A pool of rank processes for the whole test session: importing torch costs about two seconds a process."""

import os
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
MAX_RANKS = 5


class RankPool:
    """Runs a function of rank_jobs.py on several ranks at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._jobs = 0
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []

    def run(self, function: str, size: int, timeout_s: float = 30.0, **arguments: Any) -> list[Any]:
        """Return what the function returned on each rank.

        Raises:
            AssertionError: it raised on a rank; the message has that rank's traceback.
        """
        self._grow(size)
        self._jobs += 1
        for rank in range(size):
            self._connections[rank].send(
                {
                    "path": str(HERE / "rank_jobs.py"),
                    "function": function,
                    "rank": rank,
                    "size": size,
                    "store": str(self._folder / f"store{self._jobs}"),
                    "timeout_s": timeout_s,
                    "arguments": arguments,
                }
            )
        replies = []
        for rank in range(size):
            assert self._connections[rank].poll(timeout_s + 60), f"rank {rank} does not answer"
            replies.append(self._connections[rank].recv())
        failures = [f"rank {rank}: {text}" for rank, (good, text) in enumerate(replies) if not good]
        assert not failures, "\n".join(failures)
        return [value for _, value in replies]

    def _grow(self, size: int) -> None:
        missing = range(len(self._processes), size)
        if not missing:
            return
        address = str(self._folder / f"pool{len(self._processes)}")
        with Listener(address, family="AF_UNIX") as listener:
            for index in missing:
                command = [sys.executable, str(HERE / "rank_worker.py"), address, str(index)]
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                self._processes.append(subprocess.Popen(command, env=environment))
            arrived = {}
            for _ in missing:
                connection = listener.accept()
                arrived[connection.recv()] = connection
        self._connections += [arrived[index] for index in missing]

    def close(self) -> None:
        for connection in self._connections:
            connection.send(None)
            connection.close()
        for process in self._processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="session")
def rank_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    pool = RankPool(tmp_path_factory.mktemp("ranks"))
    yield pool
    pool.close()
