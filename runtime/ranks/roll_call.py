"""The roll call: ranks that have lost a peer find out which one is missing.

A rank that waits in vain knows at best for whom, and that one may only wait for a third. So each that gives
up says so in the store by which the ranks found one another, waits a moment for the others to do the same,
and names those that did not. Until then nothing is sent.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed.distributed_c10d import Store

from .faults import PeerLostError
from .world import World

ROLL_CALL_S = 2.0
"""How long to wait for the others; they notice a dead peer at once, a stuck one after the same timeout."""
FIRST_LOOK_S = 0.5
"""If only one rank is missing by then, it is the one. Rank 0 stays: it may hold the store that others ask."""
_PAUSE_S = 0.05


@contextmanager
def naming_the_missing(world: World) -> Iterator[None]:
    """Add to the error of a lost peer which ranks are missing.

    Raises:
        PeerLostError: a peer was lost inside.
    """
    try:
        yield
    except PeerLostError as error:
        if world.store is None:
            raise
        world.whereabouts.lost = str(error)
        found = _missing_ranks(world.store, world.rank, world.size)
        raise PeerLostError(f"{error}; {_words_of(found, world.size)}") from error


def _missing_ranks(store: Store, rank: int, size: int) -> list[int] | None:
    """Return the ranks that have not given up too; None where the store is gone or stuck."""
    missing = set(range(size)) - {rank}
    has_asked, is_over = threading.Event(), threading.Event()

    def ask() -> None:
        try:
            store.set(key_of(rank), "")
            while missing:
                missing.difference_update({r for r in missing if store.check([key_of(r)])})
                has_asked.set()
                if is_over.wait(_PAUSE_S):
                    return
        except RuntimeError:  # The store has gone with its rank; what was found so far stands.
            return

    asking = threading.Thread(target=ask, name="stagewright-roll-call", daemon=True)
    asking.start()
    asking.join(FIRST_LOOK_S)
    if len(missing) > 1 or not has_asked.is_set() or (rank == 0 and missing):
        asking.join(ROLL_CALL_S - FIRST_LOOK_S)
    is_over.set()
    return sorted(missing) if has_asked.is_set() else None


def key_of(rank: int) -> str:
    """Return where a rank says in the store that it has given up."""
    return f"stagewright/rank {rank} has lost a peer"


def _words_of(missing: list[int] | None, size: int) -> str:
    if missing is None:
        return (
            "the store of the ranks does not answer either, so the rank that holds it may be gone"
        )
    if not missing:
        return f"all {size} ranks are there: one was slower than --timeout"
    which = "rank" if len(missing) == 1 else "ranks"
    return f"no answer from {which} {', '.join(map(str, missing))}"
