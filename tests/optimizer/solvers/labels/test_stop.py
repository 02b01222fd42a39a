"""A search is told to stop when time is up, and when the user interrupts."""

import _thread
import math
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from stagewright.optimizer.costs.cost import IntArray
from stagewright.optimizer.solvers.labels.stop import stoppable


@pytest.fixture
def raises_when_interrupted() -> Iterator[None]:
    """Python's own handler, which is missing where the tests were started with interruptions ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def until_told(flag: IntArray) -> str:
    while not flag[0]:
        time.sleep(0.001)
    return "told"


def interrupted(flag: IntArray) -> str:
    _thread.interrupt_main()
    return until_told(flag)


def test_a_search_that_would_not_end_is_told_when_time_is_up() -> None:
    assert stoppable(until_told, time.perf_counter()) == "told"


def test_a_search_that_ends_is_not_told() -> None:
    assert stoppable(lambda flag: int(flag[0]), math.inf) == 0


def test_an_interruption_is_raised_and_ends_the_search(raises_when_interrupted: None) -> None:
    """Many times: the interruption may come while the thread is being started."""
    before = threading.active_count()
    for _ in range(100):
        with pytest.raises(KeyboardInterrupt):
            stoppable(interrupted, math.inf)
    deadline = time.perf_counter() + 10
    while threading.active_count() > before:
        assert time.perf_counter() < deadline, "a search goes on"
        time.sleep(0.01)


def test_an_error_of_the_search_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        stoppable(lambda flag: 1 // int(flag[0] * 0), math.inf)
