"""Runs compiled code that a time limit or an interruption can stop: it reads a flag that others may set."""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import numpy as np

from stagewright.optimizer.costs.cost import IntArray

Result = TypeVar("Result")


def stoppable(call: Callable[[IntArray], Result], until: float) -> Result:
    """Return call(flag), run in a thread of its own; the flag's one entry is 1 once time is up.

    The code must not hold the interpreter's lock, and return soon after the flag is set. An interruption
    (Ctrl-C) sets it, too, and is raised when the code has ended.

    Args:
        until: by time.perf_counter; infinite: no limit.
    """
    flag = np.zeros(1, dtype=np.int64)
    left_s = None if math.isinf(until) else max(0.0, until - time.perf_counter())
    with ThreadPoolExecutor(max_workers=1) as pool:
        try:  # around the start too: an interruption there must not leave the thread searching for ever
            future = pool.submit(call, flag)
            wait([future], left_s)
        finally:
            flag[0] = 1
        return future.result()
