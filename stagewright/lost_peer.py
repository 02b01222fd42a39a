"""What torch.distributed says when a peer is gone: a RuntimeError of it may also be of a wrong call."""

import re

_LOST = re.compile(
    r"gloo/transport/|connectFullMesh|[Tt]imed out|Connection (closed|reset|refused)|Broken pipe"
)
"""What gloo says, as a plain RuntimeError, of a connection that broke or of a wait that was too long."""
_OWN_FAULT = re.compile(r"enforce fail|[Ii]nvalid (usage|argument)")
"""What backends say of a call that was wrong."""


def says_lost_peer(text: str, *, is_of_backend: bool = False) -> bool:
    """Return whether an error's text says that a peer was lost.

    Args:
        text: of the error.
        is_of_backend: whether its type says already that the backend met it.
    """
    return bool(is_of_backend or _LOST.search(text)) and not _OWN_FAULT.search(text)
