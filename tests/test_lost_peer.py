"""Which errors of a backend say that a peer is gone."""

import pytest

from stagewright.lost_peer import says_lost_peer


@pytest.mark.parametrize(
    ("text", "is_of_backend", "expected"),
    [
        ("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1", False, True),
        ("Timed out waiting 1000ms for recv operation to complete", False, True),
        ("The size of tensor a (3) must match the size of tensor b (4)", False, False),
        ("[enforce fail at gloo/transport/tcp/pair.cc:446] op.nbytes <= size", False, False),
        ("NCCL error: remote process exited", True, True),
        ("NCCL error: invalid usage", True, False),
    ],
)
def test_a_wrong_call_is_no_lost_peer(text: str, is_of_backend: bool, expected: bool) -> None:
    assert says_lost_peer(text, is_of_backend=is_of_backend) == expected
