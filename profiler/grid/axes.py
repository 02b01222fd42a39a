"""Which points a grid has: layers=3,6 width=768 length=1:1024:64 context=0,1x,2x."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stagewright.document import InputError

MOST_POINTS = 100_000
NAMES = ("layers", "width", "length", "context")


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The values along each axis, in the order given."""

    layers: tuple[int, ...]
    width: tuple[int, ...]
    length: tuple[int, ...]
    """Tokens of the slice that is computed."""
    context: tuple[int, ...] = (0,)
    """Tokens before the slice, whose keys and values are there already."""
    context_times: tuple[int, ...] = ()
    """The same as multiples of the length."""

    def slices(self) -> Iterator[tuple[int, int]]:
        """Yield each pair of length and context once, shorter slices first."""
        for length in sorted(set(self.length)):
            yield from (
                (length, context)
                for context in sorted({*self.context, *(t * length for t in self.context_times)})
            )

    def models(self) -> Iterator[tuple[int, int]]:
        """Yield each pair of layers and width once, smaller ones first."""
        yield from itertools.product(sorted(set(self.layers)), sorted(set(self.width)))


def parse_axes(words: Sequence[str]) -> Axes:
    """Return the axes that the words of a command line name.

    Raises:
        InputError: an axis is unknown, missing, there twice or no list of numbers, or points are too many.
    """
    values: dict[str, tuple[str, ...]] = {}
    for word in words:
        name, _, text = word.partition("=")
        if name not in NAMES or name in values:
            raise InputError(
                f"--grid: {word!r}, expected each of {', '.join(f'{n}=…' for n in NAMES)} once"
            )
        values[name] = tuple(text.split(","))
    missing = [name for name in NAMES[:3] if name not in values]
    if missing:
        raise InputError(f"--grid: {missing[0]} is missing; add {missing[0]}=NUMBERS")
    contexts = values.get("context", ("0",))
    times = [text[:-1] for text in contexts if text.endswith("x")]
    axes = Axes(
        **{name: _numbers(name, values[name], 1) for name in NAMES[:3]},
        context=_numbers("context", [text for text in contexts if not text.endswith("x")], 0),
        context_times=_numbers("context", times, 0),
    )
    count = len([*axes.models()]) * len([*axes.slices()])
    if count > MOST_POINTS:
        raise InputError(f"--grid: {count} points, expected at most {MOST_POINTS}")
    return axes


def _numbers(name: str, texts: Sequence[str], least: int) -> tuple[int, ...]:
    """Return numbers and ranges (1:1024 or 1:1024:64, the end counts) as numbers."""
    found: list[int] = []
    for text in texts:
        parts = text.split(":")
        if len(parts) > 3 or not all(part.isascii() and part.isdigit() for part in parts):
            raise InputError(
                f"--grid: {name} has {text!r}, expected a number or a range as in 1:1024:64"
                + (", or a multiple of the length as in 2x" if name == "context" else "")
            )
        first, last, step = (*map(int, parts), *(int(parts[0]), 1)[len(parts) - 1 :])
        if first < least or last < first or step < 1 or (last - first) // step >= MOST_POINTS:
            raise InputError(
                f"--grid: {name} has {text!r}, expected numbers from {least}, not too many"
            )
        found.extend(range(first, last + 1, step))
    return tuple(found)
