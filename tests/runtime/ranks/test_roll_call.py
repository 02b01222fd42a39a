"""The roll call: ranks that gave up are found in the store, those that did not are named."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]

from stagewright.runtime.ranks.faults import PeerLostError
from stagewright.runtime.ranks.roll_call import key_of, naming_the_missing
from stagewright.runtime.ranks.world import World


class GoneStore(Store):
    """A store whose server has ended."""

    def set(self, key: str, value: str) -> None:
        raise dist.DistNetworkError("Connection reset by peer")


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ((1,), "no answer from rank 2"),
        ((), "no answer from ranks 1, 2"),
        ((1, 2), "all 3 ranks are there: one was slower than --timeout"),
        (None, "the store of the ranks does not answer either"),
    ],
)
def test_ranks_that_do_not_answer_are_named(there: tuple[int, ...] | None, expected: str) -> None:
    store = GoneStore() if there is None else HashStore()
    for rank in there or ():
        store.set(key_of(rank), "")
    world = World(0, 3, torch.device("cpu"), store=store)
    with pytest.raises(PeerLostError) as error, naming_the_missing(world):
        raise PeerLostError("lost a peer while waiting for the losses of all ranks")
    assert str(error.value).startswith(f"{world.whereabouts.lost}; {expected}")
