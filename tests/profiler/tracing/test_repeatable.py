"""A model whose output depends on more than inputs, parameters, buffers and torch's draws is refused."""

import random
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stagewright.document import InputError
from stagewright.profiler.tracing.trace import Tracing

from .conftest import traced

num_steps = 0


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.count = 0
        self.seen: list[int] = []
        self.memory: Tensor | None = None
        self.settings: dict[str, dict[str, int]] = {"inner": {"calls": 0}}

    def scaled(self, x: Tensor, factor: float | Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x) * factor)
        return result


class Counts(Layers):
    def forward(self, x: Tensor) -> Tensor:
        self.count += 1  # here
        return self.scaled(x, self.count)


class WarmsUp(Layers):
    def forward(self, x: Tensor) -> Tensor:
        self.count += 1  # here
        return self.scaled(x, 2.0 if self.count > 500 else 1.0)


class CountsInEvaluation(Layers):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            self.count += 1  # here
        return self.scaled(x, self.count + 1)


class Appends(Layers):
    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(1)  # here
        return self.scaled(x, 2.0 if len(self.seen) > 10 else 1.0)


class CountsFarDown(Layers):
    def forward(self, x: Tensor) -> Tensor:
        self.settings["inner"]["calls"] += 1  # here
        return self.scaled(x, self.settings["inner"]["calls"])


class Remembers(Layers):
    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.first(x)
        before = 0.0 if self.memory is None else self.memory
        self.memory = hidden.detach().mean(0)  # here
        result: Tensor = self.second(hidden + before)
        return result


class CountsGlobally(Layers):
    def forward(self, x: Tensor) -> Tensor:
        global num_steps
        num_steps += 1  # here
        return self.scaled(x, num_steps)


class DropsLayers(Layers):
    def forward(self, x: Tensor) -> Tensor:
        is_dropped = random.random() < 1e-9  # here
        return x if is_dropped else self.scaled(x, 1.0)


class DrawsWithNumpy(Layers):
    def forward(self, x: Tensor) -> Tensor:
        factor = 1.0 if np.random.rand() < 2 else 0.0  # here
        return self.scaled(x, factor)


class ReadsClock(Layers):
    def forward(self, x: Tensor) -> Tensor:
        hour = int(time.time()) // 3600  # here
        return self.scaled(x, hour % 24)


def line_of(build: type[nn.Module]) -> int:
    with open(__file__) as file:
        lines = file.read().splitlines()
    start = build.forward.__code__.co_firstlineno
    return next(i for i in range(start, len(lines)) if lines[i - 1].endswith("# here"))


@pytest.mark.parametrize("method", ["auto", "fx", "export"])
@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (Counts, "forward changes self.count, and"),
        (WarmsUp, "forward changes self.count, and"),
        (CountsInEvaluation, "forward changes self.count, and"),
        (Appends, "forward changes self.seen, and"),
        (CountsFarDown, "forward changes self.settings.inner.calls, and"),
        (Remembers, "forward changes self.memory, and"),
        (CountsGlobally, r"forward changes \S*num_steps, and"),
        (DropsLayers, "random numbers of Python"),
        (DrawsWithNumpy, "random numbers of Python or numpy"),
        (ReadsClock, "it reads a clock"),
    ],
)
def test_it_is_refused_with_the_users_line(
    build: type[nn.Module], reason: str, method: str
) -> None:
    with pytest.raises(InputError, match=rf"^{__file__}:{line_of(build)}: .*{reason}"):
        traced(build(), 4, how=Tracing(method=method))


class CountsForItself(Layers):
    """Keeps what it likes, and returns nothing of it."""

    def forward(self, x: Tensor) -> Tensor:
        start = time.perf_counter()
        self.count += 1
        self.seen.append(self.count)
        self.memory = self.scaled(x, 1.0)
        self.settings["inner"]["ms"] = round(time.perf_counter() - start)
        return self.memory


class CachesBySize(Layers):
    """As rotary embeddings do: a table that grows with the longest input."""

    def forward(self, x: Tensor) -> Tensor:
        if self.memory is None or self.count < x.shape[1]:
            self.count = x.shape[1]
            self.memory = torch.ones(self.count)
        self.seen = [self.count]
        result: Tensor = self.second(self.first(x) * self.memory[: x.shape[1]])
        return result


@pytest.mark.parametrize("build", [CountsForItself, CachesBySize])
def test_what_no_output_depends_on_is_no_harm_and_stays_as_it_was(
    build: Callable[[], Layers],
) -> None:
    model = build()
    traced(model, 4, how=Tracing(method="export" if build is CachesBySize else "fx"))
    assert (model.count, model.seen, model.memory) == (0, [], None)


class KeepsABuffer(nn.Module):
    stagewright_layer = True
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.count


def test_a_layer_that_counts_in_a_buffer_is_taken() -> None:
    model = nn.Sequential(nn.Linear(4, 4), KeepsABuffer())
    assert [layer.name for layer in traced(model, 4).layers][2:] == ["1"]
    assert model[1].count == 0


class OtherWay(Layers):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 8:  # here
            x = x * 2
        return self.scaled(x, 1.0)


class OtherWayForOdd(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(x, 2.0 if x.shape[0] % 2 else 3.0)  # here


class OtherWayForOne(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(x, 2.0 if x.shape[0] == 1 else 3.0)


@pytest.mark.parametrize(("build", "size"), [(OtherWay, 9), (OtherWayForOdd, 3)])
def test_a_branch_on_the_number_of_samples_is_refused(build: type[nn.Module], size: int) -> None:
    place = rf"^{__file__}:{line_of(build)}: forward goes another way for a micro-batch of {size} "
    with pytest.raises(InputError, match=place):
        traced(build(), 4, how=Tracing(method="export"))


def test_a_branch_for_one_sample_is_refused() -> None:
    with pytest.raises(InputError, match="another output than the model does for 1 samples"):
        traced(OtherWayForOne(), 4, how=Tracing(method="export"))
