"""Whether a model's output follows from its inputs, parameters, buffers and torch's random numbers alone.

A layer graph holds nothing else, so a trace would make a constant of it. Checked by running the model: the
same input gives the same output again, also after another input, whatever numbers stand where forward changes
some (a counter that is read only to be counted on is no harm), and a day later. Not found: what depends on
something that changes later and leaves no trace in the model (a file, `datetime.now`).
"""

import random
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from stagewright.document import InputError

from .inputs import called, copied
from .same import is_same
from .state import (
    Change,
    PythonState,
    buffers_kept,
    line_of_change,
    modes_kept,
    names_of,
    state_kept,
)

Example = Mapping[int | str, Any]
STEPS = (1, 1_000, 1_000_000)
"""What is added to a number that forward changes, to see whether the output depends on it."""
TIMES_LONGER = 100
"""The same for a list that forward makes longer."""
CLOCKS = tuple(
    name + unit
    for name in ("time", "monotonic", "perf_counter", "process_time")
    for unit in ("", "_ns")
)
AHEAD_S = 123_456
INSTEAD = "keep it in a buffer of an nn.Module whose class has stagewright_layer = True, or take it as input"


def demand_repeatable(model: nn.Module, one: Example, other: Example) -> None:
    """Check a model in training and in evaluation; afterwards it is as before.

    Args:
        model: in training; if it fails on an input nothing is checked, tracing says where it does.
        one: an input.
        other: another one.

    Raises:
        InputError: the output depends on something else; the message has the user's line where it is known.
    """
    for is_training in (True, False):
        with modes_kept(model), state_kept(model):
            if not is_training:
                model.eval()
            try:
                _Check(model).run(one, other)
            except InputError:
                raise
            except Exception:  # noqa: BLE001 - the model's own errors, of any kind
                return


class _Check:
    """One mode of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.state = PythonState(model)

    def run(self, one: Example, other: Example) -> None:
        draws = _other_generators()
        wanted = self._output(one)
        if draws != _other_generators():
            self._refuse_random(one)
        with _later_clocks() as reads:
            again = self._output(one)
        changes = self.state.changes()
        if not _are_same(wanted, again):
            self._refuse(one, wanted, changes, bool(reads))
        if not changes:
            return
        behind = self._output(other)
        last = self._output(one)
        self.state.restore()
        if not _are_same(behind, self._output(other)) or not _are_same(wanted, last):
            self._refuse(one, wanted, changes)
        for change in changes:
            for _ in self._with_other_values(change):
                if self._depends(one, wanted):
                    self._refuse_change(one, change)

    def _output(self, inputs: Example) -> list[Any]:
        """Return the tensors and numbers of the output; torch's random numbers are the same each time."""
        with buffers_kept(self.model), torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(0)
            return list(_leaves(called(self.model, copied(inputs))))

    def _with_other_values(self, change: Change) -> Iterator[None]:
        """Set what was changed to other values, one after the other."""
        place, key, _, after = change
        others: list[Any] = []
        if isinstance(place.holder, list | deque) and key >= len(place.content):
            others = [[after] * TIMES_LONGER]
        elif isinstance(after, bool):
            others = [not after]
        elif isinstance(after, int | float):
            others = [after + step for step in STEPS]
        for value in others:
            self.state.restore()
            if isinstance(value, list):
                place.holder.extend(value)
            else:
                place.put(key, value)
            yield

    def _depends(self, one: Example, wanted: Sequence[Any]) -> bool:
        """Return whether the output is another now; a state that forward does not take says nothing."""
        try:
            return not _are_same(wanted, self._output(one))
        except Exception:  # noqa: BLE001 - the model's own errors, of any kind
            return False

    def _refuse_random(self, one: Example) -> None:
        start = _other_generators()
        place = line_of_change(lambda: _other_generators() != start, lambda: self._output(one))
        raise InputError(
            f"{place or 'the model'}: forward draws random numbers of Python or numpy, which a layer graph "
            "does not hold; draw them with torch (torch.rand) and compute with the tensor"
        )

    def _refuse(
        self,
        one: Example,
        wanted: Sequence[Any],
        changes: Sequence[Change],
        has_read_clock: bool = False,
    ) -> None:
        """Refuse the change that the output depends on, or all if it is none of them alone."""
        for change in changes:
            self.state.restore()
            change.place.put(change.key, change.after)
            if self._depends(one, wanted):
                self._refuse_change(one, change)
        if changes and not has_read_clock:
            self._refuse_change(one, *changes)
        place, reason = "the model", "it may read a file"
        if has_read_clock:
            reason = "it reads a clock"
            with _later_clocks() as reads:
                place = line_of_change(lambda: bool(reads), lambda: self._output(one)) or place
        raise InputError(
            f"{place}: the same input gives another output the next time ({reason}), which a layer graph "
            "does not hold; compute from inputs, parameters, buffers and torch's random numbers only"
        )

    def _refuse_change(self, one: Example, *changes: Change) -> None:
        self.state.restore()
        places = list({id(change.place): change.place for change in changes}.values())
        keys = {(id(change.place), change.key) for change in changes}

        def has_changed() -> bool:
            return any((id(c.place), c.key) in keys for place in places for c in place.changes())

        place = line_of_change(has_changed, lambda: self._output(one))
        raise InputError(
            f"{place or 'the model'}: forward changes {names_of(changes)}, and the output depends on it, "
            f"which a layer graph does not hold; {INSTEAD}"
        )


def _leaves(output: Any) -> Iterator[Any]:
    """Yield tensors, of sparse ones the features, and numbers."""
    for leaf in pytree.tree_leaves(output):
        value = leaf.F if hasattr(leaf, "coordinate_map_key") else leaf
        if isinstance(value, torch.Tensor):
            value = value.detach()
            yield value if value.layout is torch.strided else value.to_dense()
        elif isinstance(value, bool | int | float):
            yield value


def _are_same(wanted: Sequence[Any], found: Sequence[Any]) -> bool:
    return len(wanted) == len(found) and all(map(_is_same, wanted, found))


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return is_same(a, b)
    return type(a) is type(b) and bool(a == b or a != a)


@contextmanager
def _later_clocks() -> Iterator[list[str]]:
    """Let the clocks of `time` be more than a day ahead; the names of those that are read are listed."""
    reads: list[str] = []
    clocks = {name: getattr(time, name) for name in CLOCKS}

    def later(name: str) -> float:
        reads.append(name)
        return clocks[name]() + AHEAD_S * (10**9 if name.endswith("_ns") else 1)  # type: ignore[no-any-return]

    for name in CLOCKS:
        setattr(time, name, partial(later, name))
    try:
        yield reads
    finally:
        for name, clock in clocks.items():
            setattr(time, name, clock)


def _other_generators() -> tuple[Any, ...]:
    """Return the states of the generators that are not torch's."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return (random.getstate(),)
    name, keys, *rest = numpy.random.get_state()
    return (random.getstate(), name, keys.tobytes(), *rest)
