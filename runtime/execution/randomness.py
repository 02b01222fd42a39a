"""Random numbers that depend on nothing but (seed, step, unit, layer), so on no plan."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stagewright.schedule import Unit


def seed_of(*key: int | str) -> int:
    """Return a 63-bit seed for a key; equal keys give equal seeds in every process."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw torch's CPU random numbers from a seed inside, and leave the generator as it was."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


class LayerSeeds:
    """Seeds torch's generators before each random layer of a unit."""

    def __init__(self, seed: int, microbatches_per_step: int | None = None) -> None:
        """A program over several steps numbers its micro-batches through, hence their number in a step."""
        self._seed = seed
        self._per_step = microbatches_per_step
        self._key: tuple[int, ...] = (0, 0)
        """Step and micro-batch, and the slice where the micro-batch has some."""

    def begin(self, step: int, unit: Unit) -> None:
        """Say which unit runs next."""
        microbatch, piece = unit
        if self._per_step is not None:
            step, microbatch = step + microbatch // self._per_step, microbatch % self._per_step
        self._key = (step, microbatch) if piece is None else (step, microbatch, piece)

    def __call__(self, layer: str) -> None:
        """Seed for one layer; the generated stage calls this right before it."""
        seed = seed_of(self._seed, *self._key, layer)
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(seed)
