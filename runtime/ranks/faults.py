"""Faults: a dead or stuck peer ends the run with one clear line on every rank."""

import os
import re
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

import torch.distributed as dist

from stagewright.document import InputError
from stagewright.lost_peer import says_lost_peer

from .whereabouts import Whereabouts

PEER_LOST_STATUS = 3
"""Exit status of a rank that gave up because of another rank."""


_SOURCE_LINE = re.compile(r"\A\[[^\]\s]*:\d+\]\s*")
"""Where in its own sources gloo met an error."""
INTERRUPTED_STATUS = 130
"""Exit status of a rank that was interrupted (Ctrl-C), as shells have it."""


class PeerLostError(Exception):
    """Another rank died or did not answer in time; the message says what was waited for."""


class waiting_for:
    """A context that turns the backend's error in a wait into a PeerLostError; it leaves all others.

    Messages wait here thousands of times: the words of what are put together if there is an error, and this
    is no generator, which would take longer to enter and to leave.
    """

    __slots__ = ("_what",)

    def __init__(self, *what: object) -> None:
        """what is waited for: a message, or its words."""
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raise PeerLostError if the peer closed the connection or the time ran out."""
        if not isinstance(error, RuntimeError):
            return
        if not says_lost_peer(str(error), is_of_backend=isinstance(error, dist.DistError)):
            return
        words = " ".join(map(str, self._what))
        text = _SOURCE_LINE.sub("", str(error).strip())
        reason = text.splitlines()[0] if text else type(error).__name__
        raise PeerLostError(f"lost a peer while waiting for {words} ({reason[:160]})") from error


def end_rank(message: str, status: int) -> NoReturn:
    """Print one line and end this process at once, whatever its other threads wait for."""
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


def run_rank(program: str, whereabouts: Whereabouts, run: Callable[[], int]) -> int:
    """Return what one of several ranks returns; end it at once, with one line, where it raises.

    An exception that is neither the user's input nor a lost peer has its traceback before that line.
    """
    try:
        return run()
    except InputError as error:
        reason, status = str(error), 2
    except PeerLostError as error:
        reason, status = str(error), PEER_LOST_STATUS
    except KeyboardInterrupt:
        reason, status = "interrupted", INTERRUPTED_STATUS
    except BaseException as error:  # noqa: BLE001 - the other ranks must not wait for this one
        traceback.print_exc()
        reason, status = f"failed with {type(error).__name__}, see the traceback above", 1
    end_rank(f"{program}: {whereabouts}: {reason}", status)


AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
"""Set by torchrun, and by commands that start their own ranks (starting.py): the store is the launcher's."""
LAUNCHER_CHECK_S = 1.0
"""How often a rank looks whether the torchrun that started it is still there."""


def end_on_termination(program: str, whereabouts: Whereabouts) -> None:
    """End this rank with one line when it is told to stop, even while it waits inside the backend.

    A Python signal handler runs only between two instructions of the main thread, which may sit in a wait
    of the backend; so the signal's number goes to a pipe that a thread of its own reads. The thread also ends
    the rank when the torchrun or the command that started it is gone: nobody else would.

    Args:
        program: the command's name, for messages.
        whereabouts: of this rank.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    launcher = os.getppid() if AGENT_STORE in os.environ else None

    def watch() -> None:
        while True:
            ready, _, _ = select.select([reader], [], [], LAUNCHER_CHECK_S)
            numbers = os.read(reader, 64) if ready else b""
            if signal.SIGINT in numbers:
                end_rank(f"{program}: {whereabouts}: interrupted", INTERRUPTED_STATUS)
            if signal.SIGTERM in numbers:
                reason = whereabouts.lost or (
                    "told to stop (SIGTERM): another rank failed or the launcher was stopped"
                )
                end_rank(f"{program}: {whereabouts}: {reason}", PEER_LOST_STATUS)
            if launcher is not None and os.getppid() != launcher:
                end_rank(
                    f"{program}: {whereabouts}: the launcher that started it is gone",
                    PEER_LOST_STATUS,
                )

    threading.Thread(target=watch, name="stagewright-termination", daemon=True).start()
