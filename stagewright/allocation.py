"""The C library's allocator, set alike where layers are measured and where they run."""

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt (malloc.h)."""


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next step instead of giving it back to the kernel.

    glibc gives large blocks back at moments that depend on the heap's state; taking them again costs page
    faults, several milliseconds in some steps and none in others, which no profile predicts. Call it before
    large tensors are made. Return False where the C library has no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_MMAP_MAX, 0))
