"""Commands that start their own ranks: a rank that is killed ends all, and so does the command's own end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

MakePackage = Any
PATIENCE_S = 60.0


def wait_until(is_so: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < give_up_s
        time.sleep(0.05)


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(child) for child in children.split()]


def has_connected(rank: int) -> bool:
    threads = Path(f"/proc/{rank}/task").glob("*/comm")
    return any("gloo" in thread.read_text() for thread in threads)


def has_ended(rank: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{rank}/status").read_text()
    except FileNotFoundError:
        return True


@contextmanager
def replaying(package: Any) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Start a replay of two ranks that would take hours; give it and its ranks once they have met."""
    plan = str(package.directory / "plan.json")
    command = [sys.executable, "-m", "stagewright.cli", "replay", plan, "--steps", "1000000"]
    unlaunched = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    environment = {name: value for name, value in os.environ.items() if name not in unlaunched}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    ranks: list[int] = []
    try:
        wait_until(lambda: len(ranks_of(process)) == package.num_ranks)
        ranks = ranks_of(process)
        wait_until(lambda: all(map(has_connected, ranks)))
        yield process, ranks
    finally:
        process.kill()
        process.communicate()
        for rank in ranks:
            if not has_ended(rank):
                os.kill(rank, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_rank_ends_the_command_and_the_other_says_which(make_package: MakePackage) -> None:
    with replaying(make_package("mlp", [1, 1], 2, "1f1b")) as (process, ranks):
        os.kill(ranks[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode != 0
        assert all(map(has_ended, ranks))
    assert "stagewright replay: rank 0" in errors
    assert "Traceback" not in errors


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ranks_end_with_the_command(make_package: MakePackage, number: signal.Signals) -> None:
    with replaying(make_package("mlp", [1, 1], 2, "1f1b")) as (process, ranks):
        process.send_signal(number)
        wait_until(lambda: all(map(has_ended, ranks)))
