"""The best value over time: recorded by a search, written as CSV and PNG."""

import time
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from stagewright.document import InputError, write_atomically


@dataclass
class Trace:
    """The improvements of one search, and its clock."""

    seconds_limit: float = float("inf")
    started: float = field(default_factory=time.perf_counter)
    improvements: list[tuple[float, float]] = field(default_factory=list)
    """(measured seconds since the start, best value)"""

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    @property
    def is_over(self) -> bool:
        """Whether the search must stop."""
        return self.seconds >= self.seconds_limit

    @property
    def best(self) -> float:
        return self.improvements[-1][1] if self.improvements else float("inf")

    def record(self, value: float) -> bool:
        """Note a value; return whether it is the best so far."""
        if value >= self.best:
            return False
        self.improvements.append((self.seconds, value))
        return True


def write_csv(path: Path, trace: Trace) -> None:
    """Write a row per improvement."""
    rows = [f"{seconds:.6f},{value!r}\n" for seconds, value in trace.improvements]
    write_atomically(path, ("seconds_measured,best_value\n" + "".join(rows)).encode())


def write_png(path: Path, trace: Trace, title: str, ended_seconds: float) -> None:
    """Draw the best value over time, up to the search's end.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path}: {error.name} is not installed; pip install 'stagewright[report]', or write a CSV"
        ) from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    seconds, values = zip(*[*trace.improvements, (ended_seconds, trace.best)], strict=True)
    axes.step(seconds, values, where="post", marker=".")
    axes.set(xlabel="seconds (measured)", ylabel="best value", title=title)
    if min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    content = BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomically(path, content.getvalue())
